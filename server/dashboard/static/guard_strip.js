// A timeline of guard states: colour and height both tell the state, and one bad tick is never lost between pixels.

import { percent } from "./format.js";
import { moreSevere } from "./history.js";
import { colour } from "./theme.js";

const HEIGHT = { NOMINAL: 0.3, UNKNOWN: 0.3, HOLD: 0.65, STOP: 1 };
const COLOUR = { NOMINAL: "--nominal", UNKNOWN: "--offline", HOLD: "--hold", STOP: "--stop" };

export function drawGuardStrip(canvas, history) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  context.fillStyle = colour("--grid");
  context.fillRect(0, height - 1, width, 1);
  for (const [x, next, state] of columnsOf(history, width)) {
    const tall = Math.round(HEIGHT[state] * height);
    context.fillStyle = colour(COLOUR[state]);
    context.fillRect(x, height - tall, next - x, tall);
  }
}

// Runs [x, end, state] over the pixels, each with the most severe state that fell on it; a state lasts until the next one.
function* columnsOf(history, width) {
  const times = history.column("t");
  const states = history.column("guard");
  const start = history.end - history.span;
  let pixel = -1;
  let worst = null;
  for (let i = 0; i < times.length; i++) {
    const x = Math.min(width - 1, Math.max(0, Math.floor(((times[i] - start) / history.span) * width)));
    if (x === pixel && worst && states[i]) {
      worst = moreSevere(states[i], worst);
      continue;
    }
    if (worst) yield [pixel, Math.max(x, pixel + 1), worst];
    pixel = x;
    worst = states[i];
  }
  if (worst) yield [pixel, width, worst];
}

export function guardShares(history) {
  const states = history.column("guard").filter((state) => state !== null);
  if (!states.length) return "no decision yet";
  const parts = ["NOMINAL", "HOLD", "STOP", "UNKNOWN"]
    .map((name) => [name, states.filter((state) => state === name).length / states.length])
    .filter(([name, share]) => name === "NOMINAL" || share > 0)
    .map(([name, share]) => `${percent(share)} ${name.toLowerCase()}`);
  return `last ${history.span} s: ${parts.join(", ")}. Low bar: nominal; half: hold; full: stop.`;
}

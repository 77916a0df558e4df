// The live charts of one robot: what each draws and what it means to the person who reads it.

import { LiveChart } from "./live_chart.js";
import { milliseconds } from "./format.js";

const CHANNEL_COLOURS = ["--blue", "--orange", "--purple", "--green", "--pink", "--grey"];
const OVERLAID_CHANNELS = 3;
const BAND_OPACITY = 0.22;

// host: element that receives the charts; policy: as the server describes it (may be unknown); history: sizes are known.
export function createCharts(host, policy, history) {
  if (!history.sizes) return [new LiveChart(host, latency())];
  const channels = channelNames(policy, history.sizes.gradient_mean);
  return [
    new LiveChart(host, returnLaw(policy, history.sizes.return_quantiles)),
    new LiveChart(host, gradientDispersion(policy, channels)),
    new LiveChart(host, agreement(channels)),
    new LiveChart(host, latency()),
  ];
}

export function worstShare(policy) {
  return policy ? `${Number((100 * policy.cvar_level).toFixed(1))} %` : "share";
}

function channelNames(policy, count) {
  return policy?.action.length === count ? policy.action : Array.from({ length: count }, (_, k) => `action ${k}`);
}

function returnLaw(policy, count) {
  const levels = policy?.return_quantile_levels.length === count ? policy.return_quantile_levels : [];
  const series = levels.map((_, k) => ({ column: `return_quantiles.${k}` }));
  const bands = [];
  for (let k = 0; k < Math.floor(levels.length / 2); k++) {
    const upper = levels.length - 1 - k;
    const middle = Math.round(100 * (levels[upper] - levels[k]));
    bands.push({ upper: `return_quantiles.${upper}`, lower: `return_quantiles.${k}`, colour: "--blue", opacity: 1 - (1 - BAND_OPACITY) ** (k + 1), label: `middle ${middle} %` });
  }
  if (levels.length % 2) Object.assign(series[(levels.length - 1) / 2], { label: "median", colour: "--blue", width: 2 });
  series.push({ column: "return_mean", label: "mean", colour: "--purple", width: 1.5, dash: [6, 4] });
  series.push({ column: "return_cvar", label: `average of the worst ${worstShare(policy)}`, colour: "--orange", width: 2, dash: [2, 3] });
  return {
    name: "return",
    title: "Return ahead",
    unit: "reward",
    hint: "What the policy expects to collect from now on. The shaded fan holds the likely outcomes: the wider it is, the less certain what comes.",
    series,
    bands,
  };
}

function gradientDispersion(policy, channels) {
  const units = channels.map((_, k) => policy?.action_units?.[k] ?? "");
  const single = units.every((unit) => unit === units[0]) ? units[0] : "";
  const views = channels.map((channel, k) => ({ label: channel, ...channelView([k], channels) }));
  if (channels.length > OVERLAID_CHANNELS) {
    views.unshift({
      label: "all (spread only)",
      series: channels.map((channel, k) => ({ column: `gradient_std.${k}`, label: `${channel} spread`, ...stroke(k) })),
      bands: [],
    });
  }
  const overlaid = channels.length <= OVERLAID_CHANNELS;
  return {
    name: "gradient",
    title: "Action gradient",
    unit: `reward per ${single && single !== "1" ? single : "action unit"}`,
    hint: "How much more return a little more of this action would bring. Line: mean; band: spread (± 1 standard deviation). A band across 0 means the policy is unsure which way is better.",
    zeroLine: true,
    ...(overlaid ? channelView(channels.map((_, k) => k), channels) : { views }),
  };
}

function channelView(indices, channels) {
  return {
    series: indices.flatMap((k) => [
      { column: `gradient_low.${k}` },
      { column: `gradient_high.${k}` },
      { column: `gradient_mean.${k}`, label: `${channels[k]} mean`, ...stroke(k), width: 2 },
    ]),
    bands: indices.map((k) => ({
      upper: `gradient_high.${k}`, lower: `gradient_low.${k}`, colour: stroke(k).colour, opacity: BAND_OPACITY, label: `${channels[k]} spread`, spread: `gradient_std.${k}`,
    })),
  };
}

function agreement(channels) {
  const series = channels.length <= OVERLAID_CHANNELS
    ? channels.map((channel, k) => ({ column: `gradient_sign_agreement.${k}`, label: `${channel}: same sign`, ...stroke(k), dash: [5, 3] }))
    : [{ column: "gradient_sign_agreement.least", label: "same sign, least agreeing channel", colour: "--orange", width: 1.5, dash: [5, 3] }];
  series.push({ column: "gradient_resultant_length", label: "common direction", colour: "--green", width: 1.5 });
  return {
    name: "agreement",
    title: "Do the gradients agree?",
    unit: "0 to 1",
    hint: "Common direction: 1 when all samples point the same way, 0 when they cancel out. Same sign: share of the samples on the majority's side; 0.5 is a coin toss.",
    range: [0, 1.04],
    splits: [0, 0.25, 0.5, 0.75, 1],
    series,
    bands: [],
  };
}

function latency() {
  return {
    name: "latency",
    title: "Latency",
    unit: "ms, logarithmic",
    hint: "Round trip as the robot measures it; of that, computing and waiting in the server. Above the control period a decision comes too late.",
    logarithmic: true,
    periodLine: true,
    format: milliseconds,
    series: [
      { column: "round_trip_ms", label: "round trip", colour: "--blue", width: 1.5 },
      { column: "inference_ms", label: "inference", colour: "--purple", width: 1.5 },
      { column: "queue_ms", label: "queue", colour: "--orange", width: 1 },
    ],
    bands: [],
  };
}

function stroke(k) {
  const turn = Math.floor(k / CHANNEL_COLOURS.length);
  return { colour: CHANNEL_COLOURS[k % CHANNEL_COLOURS.length], width: 1.5, dash: [undefined, [6, 3], [2, 3]][turn % 3] };
}


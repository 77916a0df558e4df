// One robot: state, key figures, guard timeline and, when opened, its charts.

import { createCharts, statedInterval, worstShare } from "./charts.js";
import { duration, milliseconds, number, percent, quantile, shortVersion } from "./format.js";
import { drawGuardStrip, guardShares } from "./guard_strip.js";
import { History, guardState } from "./history.js";
import { SensorBars } from "./sensor_bars.js";

const STALE_AFTER_S = 1;
const CHART_STEP = 1 / 256; // of the time shown: charts are drawn anew once they have moved by a pixel or two, to leave the machine in peace

const SIGNALS = {
  data_distance: { field: "distance", warning: "Observation far from training data", quantity: "distance" },
  critic_disagreement: { field: "disagreement", warning: "The critics disagree", quantity: "disagreement" },
};

// From signal to the value above which it warns; empty where the policy is not calibrated.
function thresholds(policy) {
  const calibration = policy?.calibration;
  return calibration ? Object.fromEntries(Object.keys(SIGNALS).map((name) => [name, calibration[`${name}_threshold`]])) : {};
}

function lateShare({ ticks, late_ticks: late, rejected, superseded }) {
  const parts = [late <= ticks && ticks ? `${percent(late / ticks)} of ${ticks} decisions` : `${ticks} decisions`];
  if (rejected) parts.push(`${rejected} rejected`);
  if (superseded) parts.push(`${superseded} superseded`);
  return parts.join(" · ");
}

export class RobotCard {
  #policy = null;
  #robot = null;
  #history = null;
  #charts = [];
  #sensors = null;
  #warning = "";
  #lastSample = performance.now();
  #changed = true;
  #chartsBehind = true;
  #chartsDrawn = -Infinity;
  #visible = true;
  #observer;

  // announce(text): tells people who cannot see the page; called when the guard changes.
  constructor(session, open, announce) {
    this.announce = announce;
    this.element = document.getElementById("robot-card").content.firstElementChild.cloneNode(true);
    this.element.dataset.session = session;
    this.element.classList.toggle("open", open);
    this.#field("toggle").addEventListener("click", () => this.#toggle());
    this.#labelToggle();
    this.#observer = new IntersectionObserver(([entry]) => {
      this.#visible = entry.isIntersecting;
      this.#changed = true;
    });
    this.#observer.observe(this.element);
  }

  get open() { return this.element.classList.contains("open"); }
  get guard() { return this.#robot.connected ? guardState(this.#robot.guard) : "DISCONNECTED"; }

  // robot: the server's account of the session; its samples are only those that are new, unless whole is true.
  update(robot, policy, whole) {
    const before = this.#robot ? this.guard : null;
    this.#robot = robot;
    if (!this.#history || whole || policy?.version !== this.#policy?.version) {
      this.#policy = policy;
      this.#startHistory();
    }
    let added = this.#history.append(robot.samples);
    if (added < 0) {
      this.#startHistory();
      added = this.#history.append(robot.samples);
    }
    if (added > 0) {
      this.#lastSample = performance.now();
      this.#chartsBehind = true;
    }
    this.#showSensors();
    this.#changed = true;
    this.element.dataset.guard = guardState(robot.guard);
    this.element.dataset.connected = String(robot.connected);
    if (before !== null && before !== this.guard) {
      this.announce(`${robot.robot}: ${this.guard}${robot.guard_reason && robot.connected ? `, ${robot.guard_reason}` : ""}`);
    }
  }

  // linkLost: nothing can be said about this robot, because the server does not answer.
  draw(linkLost) {
    const silentS = (performance.now() - this.#lastSample) / 1000;
    const stale = linkLost || !this.#robot.connected || silentS > Math.max(STALE_AFTER_S, 5 * (this.#policy?.control_period_s ?? 0));
    this.element.classList.toggle("stale", stale);
    this.#showFreshness(stale, silentS);
    if (!this.#visible) return;
    if (this.open && this.#history.length) this.#drawCharts();
    if (!this.#changed) return;
    this.#changed = false;
    this.#showHeader();
    this.#showWarnings();
    this.#showTiles();
    this.#field("action-alone").hidden = !this.open || !this.#history.length || this.#history.sizes !== null;
    drawGuardStrip(this.#field("strip"), this.#history);
    const shares = guardShares(this.#history);
    this.#text("guard-shares", shares);
    this.#field("strip").setAttribute("aria-label", `Guard states, ${shares}`);
    this.element.dataset.ticks = String(this.#history.ticks);
  }

  recolour() {
    for (const chart of this.#charts) chart.reset();
    this.#chartsDrawn = -Infinity;
    this.#chartsBehind = true;
    this.#changed = true;
  }

  remove() {
    this.#observer.disconnect();
    this.#dropCharts();
    this.element.remove();
  }

  #field(name) {
    return this.element.querySelector(`[data-field="${name}"]`);
  }

  #text(name, text) {
    const element = this.#field(name);
    if (element.textContent !== text) element.textContent = text;
  }

  #startHistory() {
    this.#dropCharts();
    this.#history = new History(this.#policy?.control_period_s, thresholds(this.#policy));
  }

  #toggle() {
    this.element.classList.toggle("open");
    if (!this.open) this.#dropCharts();
    this.#labelToggle();
    this.#changed = true;
  }

  #labelToggle() {
    this.#field("charts").hidden = !this.open;
    this.#field("toggle").setAttribute("aria-expanded", String(this.open));
    this.#text("toggle", this.open ? "Hide charts" : "Show charts");
  }

  #drawCharts() {
    const wanted = this.#history.sizes ? 5 : 1;
    if (this.#charts.length !== wanted) {
      this.#dropCharts();
      this.#charts = createCharts(this.#field("charts"), this.#policy, this.#history);
      for (const chart of this.#charts) chart.link(this.#charts);
    }
    const now = performance.now();
    if (!this.#chartsBehind || now - this.#chartsDrawn < 1000 * CHART_STEP * this.#history.span) return;
    this.#chartsBehind = false;
    this.#chartsDrawn = now;
    for (const chart of this.#charts) chart.draw(this.#history);
  }

  #dropCharts() {
    for (const chart of this.#charts) chart.destroy();
    this.#charts = [];
    this.#sensors?.destroy();
    this.#sensors = null;
    this.#chartsDrawn = -Infinity;
    this.#chartsBehind = true;
  }

  #showSensors() {
    const gradient = this.#robot.observation_gradient_mean;
    if (!gradient || !this.open || !this.#charts.length || this.#policy?.observation.length !== gradient.length) return;
    this.#sensors ??= new SensorBars(this.#field("charts"), this.#policy);
    this.#sensors.update(gradient);
  }

  // Signals that were above their thresholds for most of the last second.
  #showWarnings() {
    const warnings = Object.entries(thresholds(this.#policy))
      .filter(([name]) => this.#robot.connected && this.#history.warns(name))
      .map(([name, threshold]) => ({ text: SIGNALS[name].warning, more: `${SIGNALS[name].quantity} ${number(this.#history.last(name))}, warns above ${number(threshold)}` }));
    this.#field("warning").hidden = !warnings.length;
    this.#text("warning", warnings.map(({ text, more }) => `${text}: ${more}.`).join(" "));
    const summary = warnings.map(({ text }) => text).join(", ");
    if (summary && summary !== this.#warning) this.announce(`${this.#robot.robot}: ${summary}`);
    this.#warning = summary;
  }

  #showFreshness(stale, silentS) {
    const element = this.#field("freshness");
    element.hidden = !stale || !this.#robot.connected;
    if (!element.hidden) this.#text("freshness", `No new data for ${duration(silentS)}: what you see is old.`);
  }

  #showHeader() {
    const robot = this.#robot;
    const pill = this.#field("guard");
    pill.dataset.state = this.guard;
    this.#text("guard", this.guard);
    this.#text("robot", robot.robot);
    const toggle = this.#field("toggle");
    toggle.setAttribute("aria-label", `${toggle.textContent} of ${robot.robot}`);
    const environment = this.#policy ? ` · ${this.#policy.environment}` : "";
    this.#text("policy", `${robot.policy} ${shortVersion(robot.policy_version)}${environment}`);
    const uncalibrated = this.#field("uncalibrated");
    uncalibrated.hidden = !this.#policy || this.#policy.calibrated;
    uncalibrated.title = "The stated ranges have not been compared with real outcomes.";
    const reason = this.#field("reason");
    reason.hidden = !robot.connected || !robot.guard_reason || guardState(robot.guard) === "NOMINAL";
    this.#text("reason", `Guard: ${robot.guard_reason}`);
  }

  #showTiles() {
    const robot = this.#robot;
    const history = this.#history;
    this.#showReturn();
    this.#text("below-label", this.#policy ? `Return under ${number(this.#policy.return_threshold)}` : "Return too low");
    const below = history.last("return_below_threshold");
    this.#text("below", below === null ? "–" : percent(below));
    for (const [name, { field }] of Object.entries(SIGNALS)) this.#showSignal(name, field);
    this.#text("worst-label", `Worst ${worstShare(this.#policy)}`);
    this.#text("worst", number(history.last("return_cvar")));
    this.#text("worst-note", history.sizes?.return_quantiles_corrected ? "on average, raw" : "on average");
    this.#text("agreement", number(history.last("gradient_resultant_length")));
    const roundTrips = history.column("round_trip_ms");
    this.#text("round-trip", milliseconds(quantile(roundTrips, 0.5)));
    this.#text("round-trip-tail", `1 % above ${milliseconds(quantile(roundTrips, 0.99))}`);
    this.#text("late", String(robot.late_ticks));
    this.#text("late-share", lateShare(robot));
    this.#text("episode", String(robot.episode));
    this.#text("episode-return", `reward so far ${number(robot.episode_return)}`);
  }

  // The corrected law where there is one, otherwise the critics' own mean and spread.
  #showReturn() {
    const history = this.#history;
    const levels = this.#policy?.return_quantile_levels ?? [];
    const stated = history.sizes?.return_quantiles_corrected === levels.length ? statedInterval(levels) : null;
    if (!stated) {
      this.#text("return-label", "Expected return");
      this.#text("return", number(history.last("return_mean")));
      this.#text("spread", history.last("return_std") === null ? "" : `± ${number(history.last("return_std"))} spread`);
      return;
    }
    const corrected = (k) => history.last(`return_quantiles_corrected.${k}`);
    const median = levels.reduce((best, level, k) => (Math.abs(level - 0.5) < Math.abs(levels[best] - 0.5) ? k : best), 0);
    this.#text("return-label", "Return, median");
    this.#text("return", number(corrected(median)));
    const range = `${number(corrected(stated.lower))} to ${number(corrected(stated.upper))}`;
    this.#text("spread", corrected(median) === null ? "" : `${Math.round(100 * stated.share)} %: ${range}`);
  }

  #showSignal(name, field) {
    const threshold = thresholds(this.#policy)[name];
    const value = this.#history.last(name);
    const above = threshold !== undefined && value > threshold;
    this.#text(field, number(value));
    this.#text(`${field}-limit`, threshold === undefined ? "no threshold" : `${above ? "\u25b2 above" : "warns above"} ${number(threshold)}`);
    this.#field(field).parentElement.classList.toggle("above", above);
  }
}

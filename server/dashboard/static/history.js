// The last minute of one robot, one array per quantity, ready to be drawn.

export const WINDOW_S = 60;
const MAX_ROWS = 12000;
const MILLISECONDS_FLOOR = 0.001; // a logarithmic axis has no zero
const SEVERITY = { NOMINAL: 0, UNKNOWN: 1, HOLD: 2, STOP: 3 };
const VECTORS = ["return_quantiles_raw", "return_quantiles_corrected", "gradient_mean", "gradient_std", "gradient_sign_agreement"];
const SCALARS = [
  "return_mean", "return_std", "return_cvar", "return_below_threshold", "gradient_resultant_length", "critic_disagreement", "data_distance",
];
const TIMES = ["round_trip_ms", "inference_ms", "queue_ms"];

export function guardState(name) {
  return name in SEVERITY ? name : "UNKNOWN";
}

export function moreSevere(a, b) {
  return SEVERITY[a] >= SEVERITY[b] ? a : b;
}

function finite(value) {
  return Number.isFinite(value) ? value : null;
}

function shareOf(value, threshold) {
  if (value === null) return null;
  return threshold > 0 ? value / threshold : Number(value > 0) * 2; // above a threshold of zero is everything but zero
}

export class History {
  #columns = new Map();
  #gapS;
  #lastTick = -1;
  #period = null;
  #thresholds;

  // controlPeriodS: a pause of many periods is drawn as a gap, not bridged by a line.
  // thresholds: from the name of a signal to the value above which it warns; the column "NAME.share" holds it as a share of that.
  constructor(controlPeriodS, thresholds = {}) {
    this.#period = controlPeriodS;
    this.#thresholds = Object.entries(thresholds);
    this.#gapS = Math.max(0.5, 10 * (controlPeriodS ?? 0));
    const shares = this.#thresholds.map(([name]) => `${name}.share`);
    for (const name of ["t", "guard", ...SCALARS, ...TIMES, ...shares]) this.#columns.set(name, []);
    this.sizes = null;
    this.ticks = 0;
  }

  get length() { return this.#columns.get("t").length; }
  get end() { return this.#columns.get("t").at(-1) ?? 0; }
  get controlPeriodMs() { return this.#period ? 1000 * this.#period : null; }

  // Seconds shown: grows in steps while the session is young, so that a new robot does not start with an empty chart.
  get span() {
    const covered = this.end - (this.#columns.get("t")[0] ?? 0);
    return [10, 20, 30].find((seconds) => covered <= seconds) ?? WINDOW_S;
  }

  column(name) { return this.#columns.get(name); }
  last(name) { return this.#columns.get(name)?.at(-1) ?? null; }

  // Whether a signal was above its threshold on most ticks of the last second: one tick alone is no alarm.
  warns(name) {
    const shares = this.column(`${name}.share`);
    if (!shares) return false;
    const times = this.#columns.get("t");
    const recent = shares.filter((share, i) => share !== null && times[i] > this.end - 1);
    return recent.filter((share) => share > 1).length > recent.length / 2;
  }

  // Adds the samples that are new. Returns how many, or -1 when their vector lengths differ from those before.
  append(samples) {
    let added = 0;
    for (const sample of samples) {
      if (!(sample.tick > this.#lastTick) || !Number.isFinite(sample.t)) continue;
      if (!this.#fits(sample)) return -1;
      const times = this.#columns.get("t");
      if (times.length && sample.t <= times.at(-1)) continue; // charts need increasing time
      if (times.length && sample.t - times.at(-1) > this.#gapS) this.#pushGap((sample.t + times.at(-1)) / 2);
      this.#push(sample);
      this.#lastTick = sample.tick;
      added += 1;
    }
    if (added) this.#trim();
    this.ticks += added;
    return added;
  }

  #fits(sample) {
    if (finite(sample.return_mean) === null) return true; // a robot that asks for the action alone
    const sizes = VECTORS.map((name) => sample[name].length);
    if (this.sizes) return VECTORS.every((name, i) => this.sizes[name] === sizes[i]);
    this.sizes = Object.fromEntries(VECTORS.map((name, i) => [name, sizes[i]]));
    const names = VECTORS.flatMap((name, i) => Array.from({ length: sizes[i] }, (_, k) => `${name}.${k}`));
    for (let k = 0; k < this.sizes.gradient_mean; k++) names.push(`gradient_low.${k}`, `gradient_high.${k}`);
    names.push("gradient_sign_agreement.least");
    for (const name of names) this.#columns.set(name, new Array(this.length).fill(null));
    return true;
  }

  #push(sample) {
    const row = new Map([["t", sample.t], ["guard", guardState(sample.guard)]]);
    for (const name of SCALARS) row.set(name, finite(sample[name]));
    for (const name of TIMES) row.set(name, finite(sample[name]) === null ? null : Math.max(MILLISECONDS_FLOOR, sample[name]));
    for (const [name, threshold] of this.#thresholds) row.set(`${name}.share`, shareOf(row.get(name), threshold));
    if (sample.round_trip_ms === 0) row.set("round_trip_ms", null); // not measured yet
    if (row.get("return_mean") !== null) {
      for (const name of VECTORS) sample[name].forEach((value, k) => row.set(`${name}.${k}`, finite(value)));
      sample.gradient_mean.forEach((mean, k) => {
        row.set(`gradient_low.${k}`, finite(mean - sample.gradient_std[k]));
        row.set(`gradient_high.${k}`, finite(mean + sample.gradient_std[k]));
      });
      row.set("gradient_sign_agreement.least", finite(Math.min(...sample.gradient_sign_agreement)));
    }
    for (const [name, column] of this.#columns) column.push(row.get(name) ?? null);
  }

  #pushGap(t) {
    for (const [name, column] of this.#columns) column.push(name === "t" ? t : null);
  }

  #trim() {
    const times = this.#columns.get("t");
    const oldest = this.end - WINDOW_S;
    let surplus = Math.max(0, times.length - MAX_ROWS);
    while (times[surplus] < oldest) surplus += 1;
    if (surplus) for (const column of this.#columns.values()) column.splice(0, surplus);
  }
}

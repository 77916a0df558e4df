// The live charts of one robot: what each draws and what it means to the person who reads it.

import { LiveChart } from "./live_chart.js";
import { milliseconds, number, percent } from "./format.js";

const CHANNEL_COLOURS = ["--blue", "--orange", "--purple", "--green", "--pink", "--grey"];
const OVERLAID_CHANNELS = 3;
const BAND_OPACITY = 0.22;
const MOST_SHARE = 4; // of a threshold that is drawn: how far beyond matters less than for how long
const STATED_SHARE = 0.9; // of the interval that is named and quoted, where there is one

// host: element that receives the charts; policy: as the server describes it (may be unknown); history: sizes are known.
export function createCharts(host, policy, history) {
  if (!history.sizes) return [new LiveChart(host, latency())];
  const channels = channelNames(policy, history.sizes.gradient_mean);
  return [
    new LiveChart(host, returnLaw(policy, history.sizes)),
    new LiveChart(host, familiarity(policy)),
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

// The pair of quantiles whose interval is quoted: {lower, upper} as indices of the policy's levels, and its share; null where there is none.
export function statedInterval(levels) {
  const pairs = Array.from({ length: Math.floor(levels.length / 2) }, (_, lower) => {
    const upper = levels.length - 1 - lower;
    return { lower, upper, share: levels[upper] - levels[lower] };
  });
  const distance = (pair) => Math.abs(pair.share - STATED_SHARE);
  return pairs.length ? pairs.reduce((best, pair) => (distance(pair) < distance(best) ? pair : best)) : null;
}

// What held-out episodes say of the corrected fan, of the interval nearest to the one that is quoted.
function heldText({ interval_levels: levels, corrected_coverage: coverage, test_episodes: episodes }) {
  const distances = levels.map((level) => Math.abs(level - STATED_SHARE));
  const k = distances.indexOf(Math.min(...distances));
  const held = Number((100 * coverage[k]).toFixed(1));
  return `Corrected: on ${episodes} fresh simulated episodes its middle ${percent(levels[k])} held ${held}\u00a0% on average; at one moment it may be too narrow.`;
}

function returnLaw(policy, sizes) {
  const known = policy?.return_quantile_levels.length === sizes.return_quantiles_raw;
  const levels = known ? policy.return_quantile_levels : [];
  const corrected = sizes.return_quantiles_corrected > 0;
  const quantiles = corrected ? "return_quantiles_corrected" : "return_quantiles_raw";
  const raw = corrected ? ", raw" : "";
  const series = levels.map((_, k) => ({ column: `${quantiles}.${k}` }));
  const bands = [];
  for (let k = 0; k < Math.floor(levels.length / 2); k++) {
    const upper = levels.length - 1 - k;
    const middle = Math.round(100 * (levels[upper] - levels[k]));
    bands.push({ upper: `${quantiles}.${upper}`, lower: `${quantiles}.${k}`, colour: "--blue", opacity: 1 - (1 - BAND_OPACITY) ** (k + 1), label: `middle ${middle} %` });
  }
  if (levels.length % 2) Object.assign(series[(levels.length - 1) / 2], { label: "median", colour: "--blue", width: 2 });
  const stated = corrected ? statedInterval(levels) : null;
  if (stated) {
    const [lower, upper] = [stated.lower, stated.upper].map((k) => `return_quantiles_raw.${k}`);
    for (const column of [lower, upper]) series.push({ column, colour: "--grey", width: 1, dash: [2, 3] });
    bands.push({ upper, lower, colour: "--grey", outline: true, label: `middle ${Math.round(100 * stated.share)} %, raw` });
  }
  series.push({ column: "return_mean", label: `mean${raw}`, colour: "--purple", width: 1.5, dash: [6, 4] });
  series.push({ column: "return_cvar", label: `average of the worst ${worstShare(policy)}${raw}`, colour: "--orange", width: 2, dash: [2, 3] });
  const held = corrected && policy?.calibration ? ` ${heldText(policy.calibration)}` : "";
  return {
    name: "return",
    title: "Return ahead",
    unit: "reward",
    tag: corrected ? { text: "corrected" } : { text: "not calibrated: the critics' own belief", warns: true },
    hint: `What the policy expects to collect from now on. The shaded fan holds the likely outcomes: the wider it is, the less certain what comes.${held}`,
    level: policy ? { value: policy.return_threshold, label: `threshold ${number(policy.return_threshold)}`, colour: "--grey" } : null,
    series,
    bands,
  };
}

function familiarity(policy) {
  const calibration = policy?.calibration;
  const signals = [
    { column: "data_distance", label: "distance from training data", colour: "--blue", width: 2 },
    { column: "critic_disagreement", label: "critics' disagreement", colour: "--purple", width: 1.5, dash: [6, 4] },
  ];
  const shared = {
    name: "familiar",
    title: "Is this familiar?",
    range: (_, __, high) => [0, calibration ? Math.min(MOST_SHARE, Math.max(1.25, 1.05 * (high ?? 0))) : 1.05 * high || 1],
  };
  const meaning = "How far the sensors' readings lie from any seen in training, and how far the critics' opinions lie apart.";
  if (!calibration) {
    return {
      ...shared,
      unit: "standard deviations; reward",
      tag: { text: "not calibrated: no thresholds", warns: true },
      hint: `${meaning} Without thresholds only rises and falls mean something.`,
      views: signals.map((signal) => ({ label: signal.label, series: [signal], bands: [] })),
      choice: "Signal",
    };
  }
  return {
    ...shared,
    unit: "share of its threshold",
    hint: `${meaning} On average at most ${percent(calibration.false_alarm_rate)} of ordinary ticks exceed 1, each signal alone; where one stays above, the policy's other numbers deserve less trust.`,
    level: { value: 1, label: "warns above", colour: "--hold" },
    series: signals.map((signal) => ({ ...signal, column: `${signal.column}.share` })),
    bands: [],
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


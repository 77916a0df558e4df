// Numbers and durations as an operator reads them.

const MINUS = "\u2212";

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (size >= 1e6 || (size > 0 && size < 1e-3)) text = value.toExponential(1);
  else if (size >= 100) text = value.toFixed(0);
  else if (size >= 10) text = value.toFixed(1);
  else if (size >= 0.1 || size === 0) text = value.toFixed(2);
  else text = value.toFixed(3);
  return text.replace(/^-/, MINUS);
}

export function percent(share) {
  if (share === 0 || share === 1 || share >= 0.1) return `${Number((100 * share).toFixed(share > 0.99 && share < 1 ? 2 : 0))} %`;
  return `${Number((100 * share).toPrecision(2))} %`;
}

export function milliseconds(value) {
  return value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(2) : number(value)} ms`;
}

export function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export function shortVersion(version) {
  return String(version ?? "").slice(0, 12);
}

export function quantile(values, share) {
  const sorted = Float64Array.from(values.filter((value) => value !== null)).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : null;
}

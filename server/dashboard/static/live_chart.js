// One scrolling chart over the history of a robot, drawn by uPlot, with its title, explanation and key.

import { number } from "./format.js";
import { colour } from "./theme.js";

const BAND_ALPHA = "38"; // hexadecimal; nested bands add up
const AXIS_FONT = "12px system-ui, sans-serif";

export class LiveChart {
  #spec;
  #view;
  #history = null;
  #figure;
  #plot = null;
  #host;
  #values = [];
  #observer;
  #linked = [];

  // spec: {name, title, unit, hint, series, bands} or with views: [{label, series, bands}] to choose from; see charts.js.
  // A band with outline: true is not filled: its two series are drawn, and the key names it.
  constructor(parent, spec) {
    this.#spec = spec;
    this.#view = spec.views?.[0] ?? spec;
    this.#figure = document.getElementById("chart").content.firstElementChild.cloneNode(true);
    for (const field of ["title", "unit", "hint"]) this.#field(field).textContent = spec[field];
    this.#host = this.#field("plot");
    if (spec.tag) {
      this.#field("tag").textContent = spec.tag.text;
      this.#field("tag").classList.toggle("warn", Boolean(spec.tag.warns));
      this.#field("tag").hidden = false;
    }
    this.#figure.dataset.chart = spec.name;
    this.#offerViews();
    parent.append(this.#figure);
    this.#observer = new ResizeObserver(() => this.#plot?.setSize(this.#size()));
    this.#observer.observe(this.#host);
  }

  // Charts that show the same moment under the pointer.
  link(charts) {
    this.#linked = charts.filter((chart) => chart !== this);
  }

  draw(history) {
    this.#history = history;
    const data = ["t", ...this.#view.series.map((series) => series.column)].map((name) => history.column(name));
    if (this.#plot) this.#plot.setData(data);
    else this.#build(data);
    this.#host.dataset.points = String(history.length);
    this.#showValues();
  }

  // Drops the drawing; the next draw makes it afresh, in the present colours.
  reset() {
    this.#plot?.destroy();
    this.#plot = null;
  }

  destroy() {
    this.#observer.disconnect();
    this.reset();
    this.#figure.remove();
  }

  #field(name) {
    return this.#figure.querySelector(`[data-field="${name}"]`);
  }

  #offerViews() {
    if (!this.#spec.views) return;
    const choice = this.#figure.querySelector(".choice");
    const select = choice.querySelector("select");
    choice.firstChild.textContent = `${this.#spec.choice ?? "Action channel"} `;
    this.#spec.views.forEach((view, i) => select.append(new Option(view.label, String(i))));
    select.addEventListener("change", () => {
      this.#view = this.#spec.views[Number(select.value)];
      this.reset();
      if (this.#history) this.draw(this.#history);
    });
    choice.hidden = false;
  }

  #size() {
    const style = getComputedStyle(this.#host);
    return { width: this.#host.clientWidth, height: this.#host.clientHeight - parseFloat(style.paddingTop) };
  }

  #build(data) {
    const columns = this.#view.series.map((series) => series.column);
    const options = {
      ...this.#size(),
      padding: [6, 22, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, range: () => [this.#history.end - this.#history.span, this.#history.end] }, y: this.#scale() },
      axes: [this.#timeAxis(), this.#valueAxis()],
      series: [{}, ...this.#view.series.map((series) => ({
        stroke: series.colour ? colour(series.colour) : "transparent",
        width: series.width ?? 0,
        dash: series.dash,
        points: { show: false },
      }))],
      bands: this.#view.bands.filter((band) => !band.outline).map((band) => ({
        series: [columns.indexOf(band.upper) + 1, columns.indexOf(band.lower) + 1],
        fill: colour(band.colour, BAND_ALPHA),
      })),
      hooks: { draw: [(plot) => this.#drawLines(plot)], setCursor: [(plot) => this.#pointAt(plot)] },
    };
    this.#plot = new uPlot(options, data, this.#host);
    this.#buildKey();
  }

  #scale() {
    if (this.#spec.range) return { range: this.#spec.range };
    if (!this.#spec.logarithmic) return {};
    return {
      distr: 3,
      range: (_, low, high) => {
        const top = Math.max(high ?? 1, this.#history.controlPeriodMs ?? 0);
        return [10 ** Math.floor(Math.log10(Math.max(0.01, low ?? 0.1))), 10 ** Math.ceil(Math.log10(top * 1.05))];
      },
    };
  }

  #timeAxis() {
    const narrow = this.#host.clientWidth < 420;
    return {
      ...axisStyle(),
      size: 26,
      splits: () => {
        const { span, end } = this.#history;
        const step = span / (span % 3 ? 5 : 6) * (narrow ? 2 : 1);
        return Array.from({ length: Math.floor(span / step) + 1 }, (_, k) => end - k * step).reverse();
      },
      values: (_, splits) => splits.map((t) => {
        const ago = this.#history.end - t;
        return ago < 0.01 ? "now" : `\u2212${Number(ago.toFixed(1))} s`;
      }),
    };
  }

  #valueAxis() {
    const axis = { ...axisStyle(), size: 54 };
    if (this.#spec.logarithmic) {
      return { ...axis, splits: (_, __, low, high) => decades(low, high), values: (_, splits) => splits.map((value) => String(Number(value.toPrecision(1)))) };
    }
    if (this.#spec.splits) axis.splits = () => this.#spec.splits;
    return { ...axis, values: (_, splits) => splits.map((value) => tickLabel(value, splits)) };
  }

  #drawLines(plot) {
    if (this.#spec.zeroLine) drawLevel(plot, 0, colour("--grey"), []);
    const { level } = this.#spec;
    if (level) drawLevel(plot, level.value, colour(level.colour), [8, 5], level.label);
    const period = this.#history.controlPeriodMs;
    if (this.#spec.periodLine && period) drawLevel(plot, period, colour("--stop"), [8, 5], `control period ${Number(period.toPrecision(3))} ms`);
  }

  #pointAt(plot) {
    this.#showValues();
    const { left, event } = plot.cursor;
    if (!event) return; // moved by a linked chart
    for (const chart of this.#linked) chart.#follow(left < 0 ? -10 : left / plot.over.clientWidth);
  }

  #follow(share) {
    if (this.#plot) this.#plot.setCursor({ left: share < 0 ? -10 : share * this.#plot.over.clientWidth, top: 0 });
  }

  #buildKey() {
    const key = this.#field("key");
    key.replaceChildren();
    this.#values = [];
    for (const series of this.#view.series.filter((each) => each.label)) {
      const dash = series.dash ? (series.dash[0] > 3 ? "dashed" : "dotted") : "solid";
      this.#addKey(key, series, dash, (i) => this.#format(this.#at(series.column, i)));
    }
    for (const band of this.#view.bands) {
      const range = (i) => (this.#at(band.lower, i) === null ? "–" : `${this.#format(this.#at(band.lower, i))} to ${this.#format(this.#at(band.upper, i))}`);
      this.#addKey(key, band, band.outline ? "dotted" : "band", band.spread ? (i) => `± ${this.#format(this.#at(band.spread, i))}` : range);
    }
  }

  #addKey(key, { label, colour: name, opacity }, kind, read) {
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = `swatch ${kind}`;
    swatch.style.color = `var(${name})`;
    if (opacity) swatch.style.opacity = String(opacity);
    const value = document.createElement("span");
    value.className = "value";
    item.append(swatch, `${label} `, value);
    key.append(item);
    this.#values.push([value, read]);
  }

  #at(column, i) {
    return this.#history.column(column)[i] ?? null;
  }

  #format(value) {
    return (this.#spec.format ?? number)(value);
  }

  #showValues() {
    const pointed = this.#plot?.cursor.idx;
    const i = pointed ?? this.#history.length - 1;
    for (const [element, read] of this.#values) element.textContent = read(i);
    this.#host.setAttribute("aria-label", `${this.#spec.title}, last ${this.#history.span} seconds. ${[...this.#field("key").children].map((item) => item.textContent).join("; ")}`);
  }
}

function axisStyle() {
  const grid = { stroke: colour("--grid"), width: 1 };
  return { stroke: colour("--muted"), font: AXIS_FONT, grid, ticks: { ...grid, size: 4 } };
}

function decades(low, high) {
  const first = Math.round(Math.log10(low));
  return Array.from({ length: Math.round(Math.log10(high)) - first + 1 }, (_, k) => 10 ** (first + k));
}

function tickLabel(value, splits) {
  const step = splits.length > 1 ? Math.abs(splits[1] - splits[0]) : 1;
  const decimals = [0, 1, 2, 3, 4, 5].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6) ?? 6;
  const text = Math.abs(value) >= 1e5 || step < 1e-6 ? value.toExponential(1) : value.toFixed(decimals);
  return Number(text) === 0 ? "0" : text.replace(/^-/, "\u2212");
}

function drawLevel(plot, value, stroke, dash, label) {
  const y = plot.valToPos(value, "y", true);
  const { left, top, width, height } = plot.bbox;
  if (y < top || y > top + height) return;
  const scale = window.devicePixelRatio || 1;
  const context = plot.ctx;
  context.save();
  context.strokeStyle = stroke;
  context.lineWidth = scale;
  context.setLineDash(dash.map((length) => length * scale));
  context.beginPath();
  context.moveTo(left, y);
  context.lineTo(left + width, y);
  context.stroke();
  if (label) {
    context.fillStyle = stroke;
    context.font = `${12 * scale}px system-ui, sans-serif`;
    context.textAlign = "left";
    context.textBaseline = y - top > 18 * scale ? "bottom" : "top";
    context.setLineDash([]);
    context.lineWidth = 4 * scale;
    context.strokeStyle = colour("--surface");
    const place = [left + 6 * scale, y + (context.textBaseline === "bottom" ? -2 : 3) * scale];
    context.strokeText(label, ...place);
    context.fillText(label, ...place);
  }
  context.restore();
}

// Which sensor the return depends on now: one bar per observation channel, in reward per standard deviation of its readings.

import { number } from "./format.js";

const MOST_BARS = 8;
const PERIOD_MS = 500;
const KEPT = 0.8; // of the old value at each new one, about ten a second: bars that jump cannot be read

export class SensorBars {
  #names;
  #scales;
  #figure;
  #smooth = null;
  #shown = -Infinity;

  // policy: as the server describes it; its observation_std makes sensors of different units comparable.
  constructor(parent, policy) {
    this.#names = policy.observation;
    this.#scales = policy.observation_std;
    this.#figure = document.getElementById("sensors").content.firstElementChild.cloneNode(true);
    parent.append(this.#figure);
  }

  // gradient: mean gradient of the return by each observation channel, in reward per unit of the channel.
  update(gradient) {
    const values = gradient.map((value, k) => value * this.#scales[k]);
    this.#smooth = this.#smooth?.map((old, k) => KEPT * old + (1 - KEPT) * values[k]) ?? values;
    if (performance.now() - this.#shown < PERIOD_MS) return;
    this.#shown = performance.now();
    this.#show();
  }

  destroy() {
    this.#figure.remove();
  }

  // The longest bars, in the order of the contract, so that they seldom change places.
  #show() {
    const bySize = this.#names.map((_, k) => k).sort((a, b) => Math.abs(this.#smooth[b]) - Math.abs(this.#smooth[a]));
    const longest = Math.abs(this.#smooth[bySize[0]]) || 1;
    const rows = bySize.slice(0, MOST_BARS).sort((a, b) => a - b).map((k) => this.#row(k, longest));
    this.#figure.querySelector("ul").replaceChildren(...rows);
    const rest = bySize.length - MOST_BARS;
    const more = this.#figure.querySelector('[data-field="more"]');
    more.hidden = rest <= 0;
    if (rest > 0) more.textContent = `and ${rest} more, none beyond ${number(Math.abs(this.#smooth[bySize[MOST_BARS]]))}`;
  }

  #row(k, longest) {
    const row = document.createElement("li");
    const [name, track, bar, value] = ["span", "span", "span", "span"].map((tag) => document.createElement(tag));
    name.className = "name";
    name.textContent = this.#names[k];
    track.className = "track";
    bar.className = this.#smooth[k] < 0 ? "bar falls" : "bar";
    bar.style.width = `${(100 * Math.abs(this.#smooth[k])) / longest}%`;
    track.append(bar);
    value.className = "value";
    value.textContent = `${this.#smooth[k] < 0 ? "" : "+"}${number(this.#smooth[k])}`;
    row.append(name, track, value);
    return row;
  }
}

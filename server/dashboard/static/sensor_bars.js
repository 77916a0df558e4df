// Which sensor the return depends on now: one bar per observation channel, in reward per standard deviation of its readings.

import { number } from "./format.js";

const MOST_BARS = 8;
const PERIOD_MS = 500;
const KEPT = 0.8; // of the old value at each new one, about ten a second: bars that jump cannot be read

export class SensorBars {
  #names;
  #scales;
  #figure;
  #rows;
  #smooth = null;
  #shown = -Infinity;

  // policy: as the server describes it; its observation_std makes sensors of different units comparable.
  constructor(parent, policy) {
    this.#names = policy.observation;
    this.#scales = policy.observation_std;
    this.#figure = document.getElementById("sensors").content.firstElementChild.cloneNode(true);
    const list = this.#figure.querySelector("ul");
    const row = list.firstElementChild;
    list.replaceChildren(...this.#names.slice(0, MOST_BARS).map(() => row.cloneNode(true)));
    this.#rows = [...list.children];
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
    const shown = bySize.slice(0, MOST_BARS).sort((a, b) => a - b);
    shown.forEach((k, i) => this.#fill(this.#rows[i], k, longest));
    const rest = bySize.length - MOST_BARS;
    const more = this.#figure.querySelector('[data-field="more"]');
    more.hidden = rest <= 0;
    if (rest > 0) more.textContent = `and ${rest} more, none beyond ${number(Math.abs(this.#smooth[bySize[MOST_BARS]]))}`;
  }

  #fill(row, k, longest) {
    const value = this.#smooth[k];
    const bar = row.querySelector(".bar");
    row.querySelector(".name").textContent = this.#names[k];
    row.querySelector(".value").textContent = `${value < 0 ? "" : "+"}${number(value)}`;
    bar.classList.toggle("falls", value < 0);
    bar.style.width = `${(100 * Math.abs(value)) / longest}%`;
  }
}

// The server's event stream, kept open: a lost or silent connection is reported once and opened again until it answers.

const RETRY_MS = 1000;
const SILENT_MS = 5000;

export class LiveStream {
  #url;
  #onEvent;
  #onLink;
  #source = null;
  #timer = null;

  // onEvent(event, first): first is true for the event that carries the whole history.
  // onLink("connecting" | "live" | "lost")
  constructor(url, onEvent, onLink) {
    this.#url = url;
    this.#onEvent = onEvent;
    this.#onLink = onLink;
  }

  open() {
    let first = true;
    this.#source = new EventSource(this.#url);
    this.#source.onmessage = (message) => {
      this.#expectWithin(SILENT_MS);
      this.#onLink("live");
      this.#onEvent(JSON.parse(message.data), first);
      first = false;
    };
    this.#source.onerror = () => this.#lose();
    this.#expectWithin(SILENT_MS);
  }

  #expectWithin(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lose(), ms);
  }

  #lose() {
    clearTimeout(this.#timer);
    this.#source.close();
    this.#onLink("lost");
    this.#timer = setTimeout(() => this.open(), RETRY_MS);
  }
}

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
  // onLink("connecting" | "live" | "lost", refusal): refusal is what a server that lets nobody in says, empty where it says nothing.
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
    this.#source.onerror = async () => {
      clearTimeout(this.#timer);
      this.#source.close();
      this.#lose(first ? await this.#refusal() : "");
    };
    this.#expectWithin(SILENT_MS);
  }

  // An EventSource does not tell why it was refused.
  async #refusal() {
    const asking = new AbortController();
    const timer = setTimeout(() => asking.abort(), RETRY_MS);
    try {
      const reply = await fetch(this.#url, { signal: asking.signal });
      return reply.ok ? "" : (await reply.json()).error;
    } catch {
      return "";
    } finally {
      clearTimeout(timer);
      asking.abort();
    }
  }

  #expectWithin(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lose(), ms);
  }

  #lose(refusal = "") {
    clearTimeout(this.#timer);
    this.#source.close();
    this.#onLink("lost", refusal);
    this.#timer = setTimeout(() => this.open(), RETRY_MS);
  }
}

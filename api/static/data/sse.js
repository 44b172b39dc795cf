// Server-sent events over fetch: like EventSource, but with request headers and access to errors.

/** @typedef {{type: string, data: string, id: string}} Message */
/** @typedef {"connecting" | "live" | "reconnecting" | "ended" | "refused"} State */

const FINAL = new Set([400, 401, 403, 404, 410]); // a retry would get the same response
const SILENCE = 60_000; // ms: four missing heartbeats; the connection is dead, whatever the state of TCP
const SLOWEST = 5_000; // maximum ms between two attempts

/** Splits a stream of text into messages (WHATWG HTML §9.2.6). */
export class Parser {
  id = ""; // to send when reconnecting
  retry = 0; // ms to wait before reconnecting, if the server sent it
  comment = ""; // the last comment
  #rest = "";
  #afterReturn = false;
  #type = "";
  #data = [];
  #newId = "";

  /** @param {string} text @returns {Message[]} the messages that it completes */
  push(text) {
    const messages = [];
    if (this.#afterReturn && text.startsWith("\n")) text = text.slice(1);
    if (text) this.#afterReturn = text.endsWith("\r");
    text = this.#rest + text;
    let start = 0;
    for (const { 0: end, index } of text.matchAll(/\r\n|\n|\r/g)) {
      this.#line(text.slice(start, index), messages);
      start = index + end.length;
    }
    this.#rest = text.slice(start);
    return messages;
  }

  #line(line, messages) {
    if (!line) return this.#dispatch(messages);
    const colon = line.indexOf(":");
    if (colon === 0) this.comment = line.slice(1).trim();
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#newId = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
  }

  #dispatch(messages) {
    this.id = this.#newId;
    if (this.#data.length) messages.push({ type: this.#type || "message", data: this.#data.join("\n"), id: this.id });
    this.#type = "";
    this.#data = [];
  }
}

/**
 * A stream over as many connections as necessary. It reconnects by itself, with Last-Event-ID, whatever ends a
 * connection. It ends with 204, with a permanent refusal, or with `stop`.
 */
export class EventStream {
  #abort = new AbortController();
  #id = "";
  #retry = 0;
  #failures = 0;
  #excuse; // why the gateway ended the connection, if it gave a reason

  /**
   * @param {object} options
   * @param {() => string} options.url  called for each connection
   * @param {() => Record<string, string>} [options.headers]
   * @param {(message: Message) => void} options.onmessage
   * @param {(state: State, refusal?: {status: number, message: string}) => void} options.onstate  with the
   *   gateway's refusal, also a temporary one
   */
  constructor({ url, headers = () => ({}), onmessage, onstate }) {
    Object.assign(this, { url, headers, onmessage });
    this.onstate = (...told) => this.#abort.signal.aborted || onstate(...told);
    this.#run(this.#abort.signal);
  }

  stop() {
    this.#abort.abort();
  }

  async #run(signal) {
    await null; // the caller has the stream before its first state
    if (!signal.aborted) this.onstate("connecting");
    while (!signal.aborted) {
      this.#excuse = undefined;
      const over = await this.#connect(signal).catch(() => false);
      if (over || signal.aborted) return;
      this.onstate("reconnecting", this.#excuse);
      await pause(this.#delay(), signal);
      this.#failures++;
    }
  }

  /** Returns true if the stream is over. Throws, or returns false, if it must reconnect. */
  async #connect(signal) {
    const dead = new AbortController();
    let heard = Date.now();
    const watch = setInterval(() => Date.now() - heard > SILENCE && dead.abort(), SILENCE / 6);
    try {
      const behind = this.#id ? { "last-event-id": this.#id } : {};
      const headers = { accept: "text/event-stream", ...this.headers(), ...behind };
      const both = AbortSignal.any([signal, dead.signal]);
      const response = await fetch(this.url(), { headers, signal: both, cache: "no-store" });
      if (response.status === 204) return this.#over("ended");
      if (FINAL.has(response.status)) return this.#over("refused", await refusal(response));
      if (response.status !== 200 || !isEvents(response)) {
        this.#excuse = await refusal(response);
        return false;
      }
      const brief = response.headers.has("content-length"); // then it contains nothing but "reconnect", and why
      if (!brief) {
        this.#retry = 0;
        this.onstate("live");
      }
      const parser = new Parser();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done && brief && parser.comment) this.#excuse = { status: response.status, message: parser.comment };
        if (done || signal.aborted) return false;
        heard = Date.now();
        for (const message of parser.push(value)) {
          this.#failures = 0;
          try {
            this.onmessage(message);
          } catch (error) {
            reportError(error); // an error of the page must not end the connection
          }
          if (signal.aborted) return true;
        }
        this.#id = parser.id || this.#id;
        this.#retry = parser.retry || this.#retry;
      }
    } finally {
      clearInterval(watch);
    }
  }

  #over(state, told) {
    this.onstate(state, told);
    return true;
  }

  #delay() {
    const longest = Math.min((this.#retry || 500) * 2 ** Math.min(this.#failures, 6), Math.max(SLOWEST, this.#retry));
    return longest * (0.5 + Math.random() / 2); // so that clients do not reconnect all at once
  }
}

const isEvents = ({ headers }) => headers.get("content-type")?.startsWith("text/event-stream");

async function refusal(response) {
  const body = await response.json().catch(() => null); // the error page of a proxy is not JSON
  return { status: response.status, message: body?.error?.message ?? `The gateway answered ${response.status}.` };
}

/** Waits for `ms`, until the network is back, or until `signal` is aborted. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(end, ms);
    function end() {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal.removeEventListener("abort", end);
      resolve();
    }
    addEventListener("online", end);
    signal.addEventListener("abort", end);
  });
}

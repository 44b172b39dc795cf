/** Server-sent events (WHATWG HTML, section 9.2.6): a parser without I/O, and a reader of a response. */

/** A block of the stream. `data` is null in a block that only sets the id. */
export interface SseMessage {
  readonly event: string;
  readonly data: string | null;
  /** The last id of the stream, which a block without an id leaves unchanged. */
  readonly id: string;
}

export class SseParser {
  /** Milliseconds of the last `retry:` field. */
  retry: number | null = null;
  /** The last comment: a gateway that ends a stream early says why. */
  comment = "";
  #line: string[] = []; // pieces of a line whose end has not come
  #afterReturn = false;
  #event = "";
  #data: string[] | null = null;
  #id = "";
  #hasId = false;

  /** Return the messages that are complete with this text. The text is decoded, without a byte order mark. */
  push(text: string): SseMessage[] {
    const messages: SseMessage[] = [];
    let start = 0;
    if (this.#afterReturn && text.startsWith("\n")) start = 1; // the second half of CR LF
    if (text) this.#afterReturn = text.endsWith("\r");
    const ends = /\r\n|\n|\r/g;
    ends.lastIndex = start;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      this.#line.push(text.slice(start, end.index));
      start = ends.lastIndex;
      const line = this.#line.join("");
      this.#line = [];
      if (line) this.#field(line);
      else this.#dispatch(messages);
    }
    if (start < text.length) this.#line.push(text.slice(start));
    return messages;
  }

  #field(line: string): void {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") (this.#data ??= []).push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) [this.#id, this.#hasId] = [value, true];
    else if (name === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
    else if (name === "" && colon === 0) this.comment = value;
  }

  #dispatch(messages: SseMessage[]): void {
    if (this.#data || this.#hasId) {
      messages.push({ event: this.#event || "message", data: this.#data?.join("\n") ?? null, id: this.#id });
    }
    [this.#event, this.#data, this.#hasId] = ["", null, false];
  }
}

/** Yield the messages of a response body as they arrive. `read` waits for the next bytes. */
export async function* messagesOf(
  body: ReadableStream<Uint8Array>,
  parser: SseParser,
  read: <T>(reading: Promise<T>) => Promise<T>,
): AsyncGenerator<SseMessage, void, undefined> {
  const decoder = new TextDecoder(); // removes a byte order mark, and keeps the beginning of a split character
  const reader = body.getReader();
  try {
    for (;;) {
      const { value, done } = await read(reader.read());
      if (done) return; // an incomplete block at the end is not an event
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.releaseLock();
  }
}

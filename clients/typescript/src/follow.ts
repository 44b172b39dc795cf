/** Event streams that outlive their connections. `Resumption` decides without I/O; `resumed` does what it says. */

import {
  TokencastError,
  UnexpectedResponse,
  Unreachable,
  errorOfResponse,
  errorOfStatus,
  retryAfterOf,
} from "./errors.js";
import { SseParser, messagesOf, type SseMessage } from "./sse.js";
import { LinkedSignal, backoff, pause } from "./timing.js";
import { isTemporary, type CallOptions, type Query, type Transport } from "./transport.js";

/** `connecting`: before the first response; `live`: the stream is open; `reconnecting`: it was lost, or could not be
 * opened. */
export type ConnectionState = "connecting" | "live" | "reconnecting";

export interface ConnectionOptions extends CallOptions {
  /** Milliseconds without any response from a gateway after which the stream ends with `Unreachable`. Default: 120,000. */
  readonly giveUpAfter?: number | undefined;
  /** Called when the connection changes; with the reason if it was lost. */
  readonly onConnection?: ((state: ConnectionState, reason?: TokencastError) => void) | undefined;
}

export interface StreamOptions extends ConnectionOptions {
  /** Continue after this cursor; `latest`: only what comes from now on. Default: from the beginning. */
  readonly after?: string | undefined;
}

/** What the requests of a stream contain besides its position. */
export interface StreamRequest {
  readonly query?: Query;
  /** The generation whose token is used. */
  readonly generation?: string;
  /** The position, of a stream that keeps its own; instead of the last id. */
  readonly position?: () => Query;
  /** Whether the message that was yielded last is the last one. */
  readonly isOver?: () => boolean;
}

/** A message of a stream, with the id from which it continues. */
export interface Received {
  readonly name: string;
  readonly cursor: string;
  readonly data: unknown;
}

const SILENCE = 60_000; // ms; a gateway sends a comment every 15 s, so the connection is dead, whatever TCP says
const LONGEST_RETRY = 120_000; // ms
const LONGEST_END = 1_000; // ms, from the last event to the end of its response

/** Where a stream continues, when it does, and when it gives up. Does no I/O. */
export class Resumption {
  #lastId = "";
  #failures = 0;
  #retry: number | null = null; // ms that the server asked for
  #hasProgressed = false;
  #silentSince: number | null = null; // since the first failure without any response
  readonly #after: string;
  readonly #giveUpAfter: number;
  readonly #clock: () => number;

  constructor(after: string | undefined, giveUpAfter = 120_000, clock: () => number = () => Date.now()) {
    this.#after = after ?? "";
    this.#giveUpAfter = giveUpAfter;
    this.#clock = clock;
  }

  /** What the next request adds: the last id, or before the first one the caller's cursor. */
  get position(): { readonly query: Query; readonly headers: Readonly<Record<string, string>> } {
    if (this.#lastId) return { query: [], headers: { "last-event-id": this.#lastId } };
    return { query: this.#after ? [["after", this.#after]] : [], headers: {} };
  }

  get lastId(): string {
    return this.#lastId;
  }

  /** A response or a part of one has arrived. */
  heard(): void {
    this.#silentSince = null;
  }

  /** A complete block has arrived: from now on the stream continues after it. */
  received(message: SseMessage): void {
    this.#lastId = message.id || this.#lastId;
    this.#hasProgressed = true;
  }

  /** The server asks to wait for this many milliseconds. */
  delay(ms: number | null): void {
    if (ms !== null) this.#retry = Math.min(ms, LONGEST_RETRY);
  }

  /** The connection is over. Return the milliseconds until the next one, or null to give up. */
  next(): number | null {
    const now = this.#clock();
    this.#silentSince ??= now;
    if (now - this.#silentSince > this.#giveUpAfter) return null;
    this.#failures = this.#hasProgressed ? 0 : this.#failures + 1;
    const delay = this.#retry ?? backoff(this.#failures);
    [this.#hasProgressed, this.#retry] = [false, null];
    return delay;
  }
}

/** Yield the messages of a stream over as many connections as necessary. Ends when the gateway says that nothing more
 * will come (204). Throws what it refuses for good. */
export async function* resumed(
  transport: Transport,
  path: string,
  options: StreamOptions,
  request: StreamRequest = {},
): AsyncGenerator<Received, void, undefined> {
  const { signal } = options;
  const state = new Resumption(options.after, options.giveUpAfter);
  const tell = reporter(options.onConnection);
  const opening = new Opening(transport, path, request, tell);
  tell("connecting");
  for (;;) {
    signal?.throwIfAborted();
    const link = new LinkedSignal(signal);
    let reason: TokencastError | undefined;
    try {
      const open = await opening.open(state, link);
      if (open === "ended") return;
      if (open instanceof TokencastError) reason = open;
      else {
        yield* received(open, state, link, request);
        if (request.isOver?.()) return;
        reason = excuseOf(open);
      }
    } catch (error) {
      if (request.isOver?.()) return;
      if (signal?.aborted) throw signal.reason;
      reason = temporary(error, transport);
    } finally {
      link.close(); // also if the caller has left
    }
    const delay = state.next();
    if (delay === null) throw reason ?? transport.unreachable(undefined);
    tell("reconnecting", reason);
    await pause(delay, signal);
  }
}

type Tell = NonNullable<StreamOptions["onConnection"]>;

/** Calls the caller's function. An error in it is the caller's, and does not end the connection. */
const reporter =
  (onConnection: StreamOptions["onConnection"]): Tell =>
  (...state) => {
    try {
      onConnection?.(...state);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  };

interface OpenStream {
  readonly body: ReadableStream<Uint8Array>;
  readonly parser: SseParser;
  /** Whether it only asks to reconnect. */
  readonly isBrief: boolean;
}

/** Opens the connections of one stream. */
class Opening {
  #hasConnected = false;

  constructor(
    private readonly transport: Transport,
    private readonly path: string,
    private readonly request: StreamRequest,
    private readonly tell: Tell,
  ) {}

  /** Return the open stream, `ended` if nothing more will come, or the reason to try again. Throws a final refusal. */
  async open(state: Resumption, link: LinkedSignal): Promise<OpenStream | "ended" | TokencastError> {
    const response = await this.#send(state, link);
    state.heard();
    if (response.status === 204) return "ended";
    const isStream = response.headers.get("content-type")?.startsWith("text/event-stream") === true;
    if (response.status === 200 && isStream && response.body) {
      const isBrief = response.headers.has("content-length"); // no stream: it contains `retry:` and why
      this.#hasConnected = true;
      if (!isBrief) this.tell("live");
      return { body: response.body, parser: new SseParser(), isBrief };
    }
    const error = await this.#refusal(response);
    // The page of a proxy, where a gateway was before, is temporary.
    if (!isTemporary(error) && !(error instanceof UnexpectedResponse && this.#hasConnected)) throw error;
    const seconds = retryAfterOf(response.headers);
    state.delay(seconds === null ? null : seconds * 1000);
    return error;
  }

  async #send(state: Resumption, link: LinkedSignal): Promise<Response> {
    const { query = [], generation, position } = this.request;
    const from = position ? { query: position(), headers: {} } : state.position;
    const call = {
      query: [...query, ...from.query],
      headers: { accept: "text/event-stream", ...from.headers },
      ...(generation === undefined ? {} : { generation }),
    };
    // The watchdog also covers a server that accepts connections and says nothing.
    return await watched(link, this.transport.send(this.path, call, { cache: "no-store" }, link.signal));
  }

  async #refusal(response: Response): Promise<TokencastError> {
    if (response.status !== 200) return await errorOfResponse(response);
    return errorOfStatus(200, `The server at ${this.transport.baseUrl} is not Tokencast.`, {});
  }
}

/** Yield the messages of one connection, and remember where it was. */
async function* received(
  open: OpenStream,
  state: Resumption,
  link: LinkedSignal,
  { isOver }: StreamRequest,
): AsyncGenerator<Received, void, undefined> {
  const { body, parser } = open;
  let last: ReturnType<typeof setTimeout> | undefined;
  const read = async <T>(reading: Promise<T>): Promise<T> => {
    const result = await watched(link, reading);
    state.heard();
    return result;
  };
  try {
    for await (const message of messagesOf(body, parser, read)) {
      link.signal.throwIfAborted(); // of what has arrived with other events, nothing more is passed on
      state.received(message);
      if (message.data === null) continue; // it only sets the id
      yield { name: message.event, cursor: state.lastId, data: parsed(message.data) };
      // The end of the response follows. It is read, so that the connection can be used again.
      if (isOver?.()) last ??= setTimeout(() => link.abort(undefined), LONGEST_END);
    }
  } finally {
    clearTimeout(last);
    state.delay(parser.retry);
  }
}

/** Wait for something of a connection; abort it if that takes too long. */
async function watched<T>(link: LinkedSignal, waiting: Promise<T>): Promise<T> {
  const timer = setTimeout(() => link.abort(new Unreachable("The connection is silent.")), SILENCE);
  try {
    return await waiting;
  } finally {
    clearTimeout(timer);
  }
}

/** Why a gateway ended a stream at once, if it did and said so. */
const excuseOf = ({ isBrief, parser }: OpenStream): TokencastError | undefined =>
  isBrief && parser.comment ? errorOfStatus(503, parser.comment, {}) : undefined;

/** An error of the connection, which ends it and not the stream. Throws any other. */
function temporary(error: unknown, transport: Transport): TokencastError {
  if (!(error instanceof TokencastError)) return transport.unreachable(error);
  if (!isTemporary(error)) throw error;
  return error;
}

function parsed(data: string): unknown {
  try {
    return JSON.parse(data);
  } catch (cause) {
    throw new UnexpectedResponse("An event is not JSON.", { cause });
  }
}

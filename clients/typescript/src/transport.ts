/** Requests to a gateway: address, key, timeouts, and repetition of what can be repeated safely. */

import {
  RateLimited,
  ServerError,
  TokencastError,
  UnexpectedResponse,
  Unreachable,
  errorOfResponse,
} from "./errors.js";
import { LinkedSignal, backoff, pause } from "./timing.js";

export type Fetch = (url: string, init?: RequestInit) => Promise<Response>;

/** A stream token, or a function that returns the token of a generation. It is called for each request. */
export type TokenSource = string | ((id: string) => string | Promise<string>);

export interface ClientOptions {
  /** Default: `TOKENCAST_URL`; in a page its own origin, elsewhere http://127.0.0.1:8000. */
  readonly baseUrl?: string | undefined;
  /** Default: `TOKENCAST_API_KEY`. Not for pages: every visitor could read it. */
  readonly apiKey?: string | undefined;
  /** For pages: they read with stream tokens, which your own server requests. */
  readonly token?: TokenSource | undefined;
  /** Milliseconds for each attempt of a request. Default: 30,000. Streams have no limit. */
  readonly timeout?: number | undefined;
  /** How often a request is repeated if it can be repeated safely. Default: 5. */
  readonly maxRetries?: number | undefined;
  /** Headers of all requests. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** Default: the global `fetch`. */
  readonly fetch?: Fetch | undefined;
}

/** Options of every call. */
export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export type Query = readonly (readonly [name: string, value: string])[];

export interface Call extends CallOptions {
  readonly query?: Query;
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  /** The generation whose stream token may be used instead of a key. */
  readonly generation?: string;
  /** Whether an error of a repetition means that an earlier request has succeeded. */
  readonly isDone?: (error: TokencastError) => boolean;
}

export type Json = Readonly<Record<string, unknown>>;

/** A successful response: its JSON object, which is empty for 204. */
export interface Answer {
  readonly body: Json;
  readonly headers: Headers;
}

/** Statuses of a gateway, or of a proxy, that is there but cannot serve the request now. */
const TRY_LATER: ReadonlySet<number> = new Set([408, 429, 502, 503, 504]);
const LONGEST_WAIT = 20; // seconds; a gateway that asks for more gets no repetition, but the caller an error

export class Transport {
  readonly baseUrl: string;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #token: TokenSource | undefined;
  readonly #fetch: Fetch;
  readonly #timeout: number;
  readonly #maxRetries: number;

  constructor(options: ClientOptions) {
    this.baseUrl = baseUrlOf(options.baseUrl ?? setting("TOKENCAST_URL") ?? ownOrigin());
    this.#headers = headersOf(options);
    this.#token = options.token;
    this.#fetch = options.fetch ?? ((url, init) => globalThis.fetch(url, init));
    this.#timeout = options.timeout ?? 30_000;
    this.#maxRetries = options.maxRetries ?? 5;
  }

  /** Send a request, again while it fails temporarily, and return its response. Every request of this package can be
   * repeated: those that create something have an idempotency key. */
  async request(method: string, path: string, call: Call = {}): Promise<Answer> {
    const init = { method, ...(call.body === undefined ? {} : { body: JSON.stringify(call.body) }) };
    for (let attempts = 1; ; attempts++) {
      const outcome = await this.#attempt(path, call, init);
      if (!(outcome instanceof TokencastError)) return outcome;
      if (attempts > 1 && call.isDone?.(outcome)) return { body: {}, headers: new Headers() };
      const asked = outcome instanceof RateLimited || outcome instanceof ServerError ? outcome.retryAfter : null;
      if (attempts > this.#maxRetries || !isTemporary(outcome) || (asked ?? 0) > LONGEST_WAIT) throw outcome;
      await pause(asked === null ? backoff(attempts - 1) : asked * 1000 + backoff(0), call.signal);
    }
  }

  /** Send a request once and return its response, of any status. Throws Unreachable, or the signal's reason. */
  async send(path: string, call: Call, init: RequestInit, signal: AbortSignal): Promise<Response> {
    const type = init.body === undefined ? {} : { "content-type": "application/json" };
    const headers = { ...this.#headers, ...type, ...call.headers };
    try {
      const url = await this.#url(path, call);
      return await this.#fetch(url, { ...init, headers, signal });
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw error instanceof TokencastError ? error : this.unreachable(error);
    }
  }

  unreachable(cause: unknown): Unreachable {
    return new Unreachable(`The gateway at ${this.baseUrl} does not respond.`, { cause });
  }

  unexpected(response?: Response): UnexpectedResponse {
    return new UnexpectedResponse(`The server at ${this.baseUrl} is not Tokencast.`, {
      status: response?.status ?? null,
      requestId: response?.headers.get("x-request-id") ?? null,
    });
  }

  /** One attempt: the response, read to its end, or its error. Throws the reason of the caller's signal. */
  async #attempt(path: string, call: Call, init: RequestInit): Promise<Answer | TokencastError> {
    const link = new LinkedSignal(call.signal);
    const tooLate = new Unreachable(`The gateway at ${this.baseUrl} has not responded within ${this.#timeout} ms.`);
    const timer = setTimeout(() => link.abort(tooLate), this.#timeout);
    try {
      const response = await this.send(path, call, init, link.signal);
      if (!response.ok) return await this.#error(response);
      const text = await response.text(); // if the gateway dies while it sends the body, it is asked again
      return { body: this.#object(response, text), headers: response.headers };
    } catch (error) {
      if (call.signal?.aborted) throw call.signal.reason;
      if (link.signal.aborted) return tooLate;
      return error instanceof TokencastError ? error : this.unreachable(error); // the body broke off
    } finally {
      clearTimeout(timer);
      link.close();
    }
  }

  async #error(response: Response): Promise<TokencastError> {
    const error = await errorOfResponse(response);
    if (response.headers.get("x-should-retry") === "false") final.add(error);
    return error;
  }

  async #url(path: string, call: Call): Promise<string> {
    const query = new URLSearchParams(call.query?.map(([name, value]) => [name, value]));
    const token = call.generation === undefined ? undefined : await this.#tokenOf(call.generation);
    if (token !== undefined) query.set("token", token);
    const text = query.toString();
    return `${this.baseUrl}${path}${text && `?${text}`}`;
  }

  async #tokenOf(generation: string): Promise<string | undefined> {
    if (typeof this.#token !== "function") return this.#token;
    try {
      return await this.#token(generation);
    } catch (cause) {
      throw new Unreachable("There is no stream token: the function that returns it has failed.", { cause });
    }
  }

  /** The JSON object of a response. */
  #object(response: Response, text: string): Json {
    if (response.status === 204) return {};
    try {
      const body: unknown = JSON.parse(text);
      if (typeof body === "object" && body !== null) return body as Json;
    } catch {
      // the same as JSON that is no object
    }
    throw this.unexpected(response);
  }
}

/** Errors whose response forbids a repetition. */
const final = new WeakSet<TokencastError>();

/** Whether the same request can succeed later. */
export const isTemporary = (error: TokencastError): boolean =>
  !final.has(error) && (error instanceof Unreachable || (error.status !== null && TRY_LATER.has(error.status)));

function baseUrlOf(text: string): string {
  const page = (globalThis as { location?: { href?: string } }).location?.href;
  let url: URL;
  try {
    url = new URL(text, page);
  } catch {
    throw new TypeError("baseUrl must be the URL of a gateway, such as http://127.0.0.1:8000");
  }
  if (!/^https?:$/.test(url.protocol)) throw new TypeError("baseUrl must begin with http:// or https://");
  if (url.username || url.password) throw new TypeError("baseUrl must not contain a password: use apiKey");
  if (url.search || url.hash) throw new TypeError("baseUrl must not have a query or a fragment");
  const path = url.pathname.replace(/\/+$/, "");
  if (path.endsWith("/v1")) throw new TypeError("baseUrl must not end with /v1: the client appends it");
  return url.origin + path;
}

/** The headers of all requests. The key is the one in the options, the one in their headers, or that of the environment;
 * but a client with tokens reads with these. */
function headersOf({ apiKey, token, headers }: ClientOptions): Readonly<Record<string, string>> {
  const given: Record<string, string> = {};
  new Headers(headers).forEach((value, name) => (given[name] = value)); // names in lower case; throws for wrong ones
  const isGiven = token !== undefined || "authorization" in given;
  const key = apiKey ?? (isGiven ? undefined : setting("TOKENCAST_API_KEY"));
  return key === undefined ? given : { ...given, authorization: `Bearer ${keyOf(key)}` };
}

/** Check a key before a header does, whose error message would contain it. */
function keyOf(key: string): string {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new TypeError("apiKey must be one word of ASCII characters");
  return key;
}

function ownOrigin(): string {
  const page = (globalThis as { location?: { origin?: string } }).location?.origin;
  return page !== undefined && /^https?:/.test(page) ? page : "http://127.0.0.1:8000";
}

/** The environment variable of this name, if there is an environment. */
function setting(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name] || undefined;
}

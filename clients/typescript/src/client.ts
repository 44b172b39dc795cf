/** The client of a gateway. */

import { GenerationCancelled, GenerationFailed, Gone, WaitTimeout, errorOfItem, type TokencastError } from "./errors.js";
import { textOf } from "./completion/content.js";
import { resumed, type StreamOptions } from "./follow.js";
import { Listing, pair, queryOf, replaced, retryBodyOf, type Conditions, type ListFilters } from "./listing.js";
import { keyHeaders, withOptions, type EnqueueOptions, type IdempotentOptions } from "./requests.js";
import { LinkedSignal } from "./timing.js";
import { Transport, type Answer, type Call, type CallOptions, type ClientOptions, type Json } from "./transport.js";
import type {
  ActivityEvent,
  Deliveries,
  Generation,
  GenerationEvent,
  GenerationRequest,
  GenerationSummary,
  Group,
  Model,
  Page,
  RetryResult,
  StreamToken,
} from "./types.js";

export interface WaitOptions extends CallOptions {
  /** Milliseconds; then `WaitTimeout` is thrown, and the generation continues. Default: no limit. */
  readonly timeout?: number | undefined;
}

export interface ActivityOptions extends StreamOptions {
  readonly group?: string | undefined;
  /** For operators: another tenant, or `*`. */
  readonly tenant?: string | undefined;
}

export interface RetryAllOptions extends IdempotentOptions {
  /** Only list what matches. */
  readonly dryRun?: boolean | undefined;
  /** Default and maximum: 1,000. */
  readonly limit?: number | undefined;
}

const EVENTS: ReadonlySet<string> = new Set<GenerationEvent["name"]>([
  "created",
  "started",
  "waiting",
  "chunk",
  "reset",
  "gap",
  "completed",
  "failed",
  "cancelled",
  "gone",
]);
const TERMINAL: ReadonlySet<string> = new Set<GenerationEvent["name"]>(["completed", "failed", "cancelled", "gone"]);
const ACTIVITY: ReadonlySet<string> = new Set<ActivityEvent["name"]>([
  "created",
  "started",
  "waiting",
  "reset",
  "completed",
  "failed",
  "cancelled",
  "queued",
  "gone",
  "gap",
]);

/** The client of a gateway. Its methods throw a `TokencastError`, or the reason of an aborted signal. It needs no end. */
export class Client {
  readonly #transport: Transport;

  constructor(options: ClientOptions = {}) {
    this.#transport = new Transport(options);
  }

  /** The address of the gateway, without a slash at its end. */
  get baseUrl(): string {
    return this.#transport.baseUrl;
  }

  /** Enqueue a chat.completions body and return the generation. It is created once, however often the request is sent:
   * without an `idempotencyKey` the client makes one. */
  async enqueue<Request extends GenerationRequest>(request: Request, options: EnqueueOptions = {}): Promise<Generation> {
    const call = { ...callOf(options), body: withOptions(request, options), headers: keyHeaders(options.idempotencyKey) };
    return await this.#generation("POST", "/v1/generations", call);
  }

  /** Enqueue up to 1,000 bodies. Return for each, in order, its generation or the error for which it was refused.
   * The options apply to all; a body's own `tokencast` takes precedence. */
  async enqueueBatch<Request extends GenerationRequest>(
    requests: readonly Request[],
    options: EnqueueOptions = {},
  ): Promise<(GenerationSummary | TokencastError)[]> {
    const generations = requests.map((request) => withOptions(request, options));
    const call = { ...callOf(options), body: { generations }, headers: keyHeaders(options.idempotencyKey) };
    return itemsOf(await this.#transport.request("POST", "/v1/generations/batch", call));
  }

  /** Return a generation with its text so far. `include: "request"` adds the request; it needs a key. */
  async get(id: string, options: CallOptions & { readonly include?: "request" | undefined } = {}): Promise<Generation> {
    const call = { ...callOf(options), query: pair("include", options.include), generation: id };
    return await this.#generation("GET", pathOf(id), call);
  }

  /** Wait until a generation has ended, and return it, whatever its status. */
  async wait(id: string, options: WaitOptions = {}): Promise<Generation> {
    const link = new LinkedSignal(options.signal);
    const { timeout } = options;
    const late = new WaitTimeout(`${id} has not ended within ${timeout} ms; it continues.`);
    const timer = timeout === undefined ? undefined : setTimeout(() => link.abort(late), timeout);
    try {
      const stream = { after: "latest", signal: link.signal, giveUpAfter: Infinity };
      for await (const event of this.follow(id, stream)) void event;
      return await this.get(id, { signal: link.signal });
    } finally {
      clearTimeout(timer);
      link.close();
    }
  }

  /** Wait for a generation and return its text. Throws `GenerationFailed` or `GenerationCancelled` if it has none that is
   * complete. */
  async text(id: string, options: WaitOptions = {}): Promise<string> {
    const generation = await this.wait(id, options);
    if (generation.status === "failed") throw new GenerationFailed(generation);
    if (generation.status === "cancelled") throw new GenerationCancelled(generation);
    return generation.text;
  }

  /** Yield the events of a generation, each once and in order, until the terminal one. Reconnects and resumes by itself.
   *
   * A `reset` event voids the text so far; a `gap` says that events before it are no longer kept. */
  async *follow(id: string, options: StreamOptions = {}): AsyncGenerator<GenerationEvent, void, undefined> {
    const stream = resumed(this.#transport, `${pathOf(id)}/events`, options, { generation: id });
    for await (const { name, cursor, data } of stream) {
      if (!EVENTS.has(name)) continue; // of a newer gateway
      const text = name === "chunk" ? textOf(data) : "";
      yield { name, cursor, data, text } as GenerationEvent;
      if (TERMINAL.has(name)) return;
    }
  }

  /** The generations that meet all conditions, newest first: `await` it for one page, iterate over it for all. */
  list(filters: ListFilters = {}, options: CallOptions = {}): Listing {
    const conditions = queryOf(filters);
    return new Listing(async (after) => {
      const query = after === undefined ? conditions : replaced(conditions, "after", after);
      const { body } = await this.#transport.request("GET", "/v1/generations", { ...callOf(options), query });
      if (!Array.isArray(body["data"])) throw this.#transport.unexpected();
      return body as unknown as Page;
    });
  }

  /** Cancel a generation, and return it. One that has ended is returned unchanged. */
  async cancel(id: string, options: CallOptions = {}): Promise<Generation> {
    return await this.#generation("POST", `${pathOf(id)}/cancel`, callOf(options));
  }

  /** Delete a generation; cancels it first if it has not ended. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    // Gone is what a repetition gets if only the response of the first request was lost.
    const isDone = (error: TokencastError): boolean => error instanceof Gone;
    await this.#transport.request("DELETE", pathOf(id), { ...callOf(options), isDone });
  }

  /** Enqueue the request of a generation that has ended again, and return the new generation. */
  async retry(id: string, options: IdempotentOptions = {}): Promise<Generation> {
    const call = { ...callOf(options), headers: keyHeaders(options.idempotencyKey) };
    return await this.#generation("POST", `${pathOf(id)}/retry`, call);
  }

  /** Retry all generations that meet the conditions; by default those that have failed. */
  async retryAll(conditions: Conditions = {}, options: RetryAllOptions = {}): Promise<RetryResult> {
    const { limit, dryRun } = options;
    const body = { ...retryBodyOf(conditions), limit, dry_run: dryRun };
    const call = { ...callOf(options), body, headers: keyHeaders(options.idempotencyKey) };
    const answer = await this.#transport.request("POST", "/v1/generations/retry", call);
    return { ...answer.body, data: itemsOf(answer) } as unknown as RetryResult;
  }

  /** Yield the lifecycle events of all your generations, without end. The first ones are what is kept of the past; with
   * `after: "latest"` there are none. An event can come twice: keep the newest generation by its id. */
  async *activity(options: ActivityOptions = {}): AsyncGenerator<ActivityEvent, void, undefined> {
    const { group, tenant } = options;
    const query = [...pair("group", group), ...pair("tenant", tenant)];
    for await (const event of resumed(this.#transport, "/v1/activity", options, { query })) {
      if (ACTIVITY.has(event.name)) yield event as ActivityEvent;
    }
  }

  /** Make a token that reads this one generation, for at most ten minutes, for a page without a key. */
  async token(id: string, options: CallOptions & { readonly ttlSeconds?: number | undefined } = {}): Promise<StreamToken> {
    const body = { ttl_seconds: options.ttlSeconds };
    const answer = await this.#transport.request("POST", `${pathOf(id)}/token`, { ...callOf(options), body });
    const made = answer.body as unknown as Omit<StreamToken, "url">;
    return { ...made, url: `${this.baseUrl}${made.events_url}` };
  }

  /** Return the counts of a group. */
  async group(name: string, options: CallOptions = {}): Promise<Group> {
    const { body } = await this.#transport.request("GET", `/v1/groups/${encodeURIComponent(name)}`, callOf(options));
    return body as unknown as Group;
  }

  /** Cancel what has not ended of a group, and return its counts. */
  async cancelGroup(name: string, options: CallOptions = {}): Promise<Group> {
    const path = `/v1/groups/${encodeURIComponent(name)}/cancel`;
    const { body } = await this.#transport.request("POST", path, callOf(options));
    return body as unknown as Group;
  }

  /** Return the newest attempts to deliver a generation's webhook. */
  async deliveries(id: string, options: CallOptions = {}): Promise<Deliveries> {
    const { body } = await this.#transport.request("GET", `${pathOf(id)}/deliveries`, callOf(options));
    return body as unknown as Deliveries;
  }

  /** Deliver a webhook again, at once. `n` is the number of an attempt. */
  async redeliver(id: string, n: number, options: CallOptions = {}): Promise<void> {
    await this.#transport.request("POST", `${pathOf(id)}/deliveries/${n}/redeliver`, callOf(options));
  }

  /** Return the models that can be requested. */
  async models(options: CallOptions = {}): Promise<readonly Model[]> {
    const { body } = await this.#transport.request("GET", "/v1/models", callOf(options));
    return body["data"] as readonly Model[];
  }

  async #generation(method: string, path: string, call: Call): Promise<Generation> {
    const { body } = await this.#transport.request(method, path, call);
    if (body["object"] !== "generation") throw this.#transport.unexpected();
    return body as unknown as Generation;
  }
}

/** The options that concern the request itself. */
const callOf = ({ signal }: CallOptions): CallOptions => ({ signal });

const pathOf = (id: string): string => {
  if (!id) throw new TypeError("the id of a generation must not be empty");
  return `/v1/generations/${encodeURIComponent(id)}`;
};

/** Generations and errors, as a batch and a bulk retry return them. */
function itemsOf({ body, headers }: Answer): (GenerationSummary | TokencastError)[] {
  const data = Array.isArray(body["data"]) ? (body["data"] as Json[]) : [];
  const requestId = headers.get("x-request-id");
  return data.map((item) => ("id" in item ? (item as unknown as GenerationSummary) : errorOfItem(item, requestId)));
}

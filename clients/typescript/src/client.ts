/** The client of a gateway. */

import {
  GenerationCancelled,
  GenerationFailed,
  Gone,
  WaitTimeout,
  errorOfItem,
  type TokencastError,
} from "./errors.js";
import { Cursors, eventOf, isTerminal } from "./events.js";
import { resumed, type ConnectionOptions, type StreamOptions } from "./follow.js";
import { Listing, pair, queryOf, replaced, retryBodyOf, type Conditions, type ListFilters } from "./listing.js";
import { keyHeaders, withOptions, type EnqueueOptions, type IdempotentOptions } from "./requests.js";
import { LinkedSignal } from "./timing.js";
import {
  Transport,
  type Answer,
  type Call,
  type CallOptions,
  type ClientOptions,
  type Json,
  type Query,
} from "./transport.js";
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
  PauseTarget,
  Queue,
  RetryResult,
  StreamToken,
  Upstream,
  UpstreamChanges,
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

export interface FollowOptions extends StreamOptions {
  /** Replay the events at their recorded times, this many times faster: 0.01 to 1000. */
  readonly speed?: number | undefined;
}

export interface RequestOptions extends CallOptions {
  readonly query?: Readonly<Record<string, string | number | boolean>> | undefined;
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

export interface RetryAllOptions extends IdempotentOptions {
  /** Only list what matches. */
  readonly dryRun?: boolean | undefined;
  /** Default and maximum: 1,000. */
  readonly limit?: number | undefined;
}

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
  async enqueue<Body extends GenerationRequest>(request: Body, options: EnqueueOptions = {}): Promise<Generation> {
    const call = {
      ...callOf(options),
      body: withOptions(request, options),
      headers: keyHeaders(options.idempotencyKey),
    };
    return await this.#generation("POST", "/v1/generations", call);
  }

  /** Enqueue up to 1,000 bodies. Return for each, in order, its generation or the error for which it was refused.
   * The options apply to all; a body's own `tokencast` takes precedence. */
  async enqueueBatch<Body extends GenerationRequest>(
    requests: readonly Body[],
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
      for await (const event of this.follow(id, { after: "latest", signal: link.signal })) void event;
      return await this.get(id, { signal: link.signal });
    } finally {
      clearTimeout(timer);
      link.close();
    }
  }

  /** Wait for a generation and return its text. Throws `GenerationFailed` or `GenerationCancelled` if it has none that is
   * complete. */
  async text(id: string, options: WaitOptions = {}): Promise<string> {
    return textOf(await this.wait(id, options));
  }

  /** Yield the whole text so far, each time it grows. After a `reset` it begins again, and after a `gap` without what is
   * no longer kept. Throws as `text` does. */
  async *streamText(id: string, options: ConnectionOptions = {}): AsyncGenerator<string, void, undefined> {
    let text = "";
    for await (const event of this.follow(id, options)) {
      if (event.name === "reset" || event.name === "gap") text = "";
      text += event.text;
      if (event.text) yield text;
    }
    textOf(await this.get(id, callOf(options)));
  }

  /** Yield the events of a generation, each once and in order, until the terminal one. Reconnects and resumes by itself.
   *
   * A `reset` event voids the text so far; a `gap` says that events before it are no longer kept. */
  async *follow(id: string, options: FollowOptions = {}): AsyncGenerator<GenerationEvent, void, undefined> {
    let hasEnded = false;
    const request = { generation: id, query: pair("speed", options.speed?.toString()), isOver: () => hasEnded };
    for await (const received of resumed(this.#transport, `${pathOf(id)}/events`, options, request)) {
      const event = eventOf(received);
      if (!event) continue; // of a newer gateway
      yield event;
      hasEnded = isTerminal(event);
    }
  }

  /** Follow up to 100 generations on one connection, until all have ended. An id can be followed by `@` and a cursor. */
  async *followAll(
    ids: Iterable<string>,
    options: ConnectionOptions = {},
  ): AsyncGenerator<GenerationEvent & { readonly generation: string }, void, undefined> {
    const all = new Cursors(ids);
    if (all.haveEnded) return;
    const position = (): Query => all.names.map((name) => ["generation", name] as const);
    const request = { position, isOver: () => all.haveEnded };
    for await (const { name, data } of resumed(this.#transport, "/v1/events", options, request)) {
      const wrapped = data as { generation: string; cursor: string; data: unknown };
      const event = eventOf({ ...wrapped, name });
      if (!event || !all.take(wrapped.generation, event)) continue;
      yield { ...event, generation: wrapped.generation };
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
  async token(
    id: string,
    options: CallOptions & { readonly ttlSeconds?: number | undefined } = {},
  ): Promise<StreamToken> {
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

  /** Return what waits, of all tenants, and why. */
  async queue(options: CallOptions = {}): Promise<Queue> {
    return (await this.request("GET", "/v1/queue", options)) as unknown as Queue;
  }

  /** Start no further generation: of all, or of one upstream or tenant. For operators. */
  async pause(target: PauseTarget = {}, options: CallOptions = {}): Promise<Queue> {
    return (await this.request("POST", "/v1/queue/pause", { ...options, body: target })) as unknown as Queue;
  }

  /** End a pause. For operators. */
  async resume(target: PauseTarget = {}, options: CallOptions = {}): Promise<Queue> {
    return (await this.request("POST", "/v1/queue/resume", { ...options, body: target })) as unknown as Queue;
  }

  /** Return the upstreams: limits, calls, circuit. */
  async upstreams(options: CallOptions = {}): Promise<readonly Upstream[]> {
    return (await this.request("GET", "/v1/upstreams", options))["data"] as readonly Upstream[];
  }

  /** Change limits of an upstream, or pause it, at run time; null restores the configured limit. For operators. */
  async updateUpstream(name: string, changes: UpstreamChanges, options: CallOptions = {}): Promise<Upstream> {
    const path = `/v1/upstreams/${encodeURIComponent(name)}`;
    return (await this.request("PATCH", path, { ...options, body: changes })) as unknown as Upstream;
  }

  /** Send a request to any route and return its JSON. It is repeated while it fails temporarily. */
  async request(method: string, path: string, options: RequestOptions = {}): Promise<Json> {
    const { query = {}, body, signal } = options;
    const headers = { ...(method === "POST" ? keyHeaders() : {}), ...options.headers };
    const pairs = Object.entries(query).map(([name, value]) => [name, String(value)] as const);
    return (await this.#transport.request(method, path, { query: pairs, body, headers, signal })).body;
  }

  async #generation(method: string, path: string, call: Call): Promise<Generation> {
    const { body } = await this.#transport.request(method, path, call);
    if (body["object"] !== "generation") throw this.#transport.unexpected();
    return body as unknown as Generation;
  }
}

/** The final text of a generation that has ended. */
function textOf(generation: Generation): string {
  if (generation.status === "failed") throw new GenerationFailed(generation);
  if (generation.status === "cancelled") throw new GenerationCancelled(generation);
  return generation.text;
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

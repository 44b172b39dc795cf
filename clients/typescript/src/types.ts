/** The JSON forms of the gateway. Fields have the names of the reference; times are unix seconds. */

import type { TokencastError } from "./errors.js";

export type Status = "queued" | "in_progress" | "completed" | "failed" | "cancelled";

export type WaitingReason =
  "queued" | "upstream_limit" | "upstream_busy" | "upstream_down" | "tenant_limit" | "paused" | "scheduled";

/** Tokens, as the upstream reported them, or counted from the chunks. */
export interface Usage {
  readonly prompt_tokens?: number;
  readonly completion_tokens?: number;
  readonly total_tokens?: number;
  readonly estimated?: boolean;
  readonly [field: string]: unknown;
}

/** Why a generation failed. */
export interface GenerationError {
  readonly message: string;
  readonly type: string | null;
  readonly code: string | null;
}

/** Why a queued generation waits. `position` counts from 1, for the reasons `queued` and `upstream_limit`. */
export interface QueueState {
  readonly position: number | null;
  readonly reason: WaitingReason;
  readonly retry_at: number | null;
  /** The upstreams that serve its model. */
  readonly upstreams?: readonly string[];
}

/** The time until which a worker has a generation, unless it renews it. Unix seconds. */
export interface Lease {
  readonly renewed_at: number;
  readonly expires_at: number;
}

/** A generation without its text, as in lists, batches, webhooks and the activity. */
export interface GenerationSummary {
  readonly id: string;
  readonly object: "generation";
  readonly status: Status;
  readonly model: string;
  readonly created_at: number;
  readonly started_at: number | null;
  readonly first_token_at: number | null;
  readonly ended_at: number | null;
  /** Number of the attempt, from 1; 0 before the first. */
  readonly attempt: number;
  /** Cursor of the newest event. */
  readonly cursor: string;
  readonly usage: Usage | null;
  readonly error: GenerationError | null;
  readonly metadata: Readonly<Record<string, string>>;
  readonly priority: number;
  readonly run_at: number | null;
  readonly group: string | null;
  /** The generation that this one repeats. */
  readonly retry_of: string | null;
  readonly upstream: string | null;
  /** Only while it waits in the queue. */
  readonly queue: QueueState | null;
  /** The first line of the last user message. */
  readonly prompt?: string | null;
  /** Only for keys with the role `operator`. */
  readonly tenant?: string;
}

/** A choice of the completion: its merged message so far. */
export interface Choice {
  readonly index: number;
  readonly message: Readonly<Record<string, unknown>>;
  readonly finish_reason: string | null;
}

/** A generation with its text so far. */
export interface Generation extends GenerationSummary {
  /** While a worker has it. */
  readonly lease?: Lease | null;
  /** Why its newest attempt restarted it, or the next one will. */
  readonly reset_reason?: "worker_lost" | "worker_stopped" | "upstream_error" | null;
  /** The content of choice 0 so far. */
  readonly text: string;
  /** The merged messages so far. */
  readonly choices: readonly Choice[];
  /** The request, if `include` names it. */
  readonly request?: Readonly<Record<string, unknown>> | null;
}

/** A page of generations, newest first. It can be empty while `has_more` is true. */
export interface Page {
  readonly object: "list";
  readonly data: readonly GenerationSummary[];
  readonly has_more: boolean;
  /** `after` of the next page. */
  readonly last_id: string | null;
}

/** Generations by status, and the tokens of those that have ended. */
export interface Group {
  readonly object: "group";
  readonly name: string;
  readonly counts: Readonly<Record<Status, number>>;
  readonly usage: Usage;
  readonly created_at: number;
  /** `null` until all have ended. */
  readonly ended_at: number | null;
}

/** A token that reads one generation. */
export interface StreamToken {
  readonly token: string;
  readonly expires_at: number;
  /** The path of the event stream with the token, on the gateway. */
  readonly events_url: string;
  /** The event stream with the token, for an EventSource. */
  readonly url: string;
}

/** An attempt to deliver a webhook. `error` is `null` if the receiver accepted it. */
export interface Delivery {
  readonly n: number;
  readonly webhook_id: string;
  readonly type: string;
  readonly at: number;
  readonly seconds: number;
  readonly status: number | null;
  readonly error: string | null;
}

export interface Deliveries {
  readonly object: "list";
  readonly data: readonly Delivery[];
  readonly retry_at: number | null;
}

/** The result of a bulk retry: for each match, newest first, the new generation or an error. */
export interface RetryResult {
  /** Number of generations that match, up to `limit`. */
  readonly matched: number;
  /** Number of them that were enqueued again. */
  readonly retried: number;
  readonly data: readonly (GenerationSummary | TokencastError)[];
  readonly has_more: boolean;
}

export interface Model {
  readonly id: string;
  readonly [field: string]: unknown;
}

/** Generations of one priority that wait for the same upstreams, for the same reason. */
export interface QueueLevel {
  readonly upstreams: readonly string[];
  readonly priority: number;
  readonly waiting: number;
  readonly reason: WaitingReason;
  readonly retry_at: number | null;
}

/** What waits, of all tenants. */
export interface Queue {
  readonly object: "queue";
  readonly depth: number;
  readonly by_priority: Readonly<Record<string, number>>;
  readonly by_reason: Readonly<Record<string, number>>;
  readonly levels: readonly QueueLevel[];
  /** `all`, `upstream NAME` or `tenant NAME`. */
  readonly paused: readonly string[];
}

/** What is paused; everything without either. */
export interface PauseTarget {
  readonly upstream?: string | undefined;
  readonly tenant?: string | undefined;
}

/** An upstream, its limits, and its calls now. */
export interface Upstream {
  readonly name: string;
  readonly max_concurrency: number | null;
  readonly requests_per_minute: number | null;
  readonly tokens_per_minute: number | null;
  /** Those of the two rates that come from the upstream's headers. */
  readonly told_limits: readonly string[];
  readonly learned_concurrency: number | null;
  readonly in_flight: number;
  readonly waiting: number;
  readonly refused: number;
  readonly circuit: "closed" | "open" | "half_open";
  readonly retry_at: number | null;
  readonly paused: boolean;
}

/** Null restores the configured limit. */
export interface UpstreamChanges {
  readonly max_concurrency?: number | null | undefined;
  readonly requests_per_minute?: number | null | undefined;
  readonly tokens_per_minute?: number | null | undefined;
  readonly paused?: boolean | undefined;
}

// --- requests ---------------------------------------------------------------------------------------------------------

/** A message of the conversation, as the upstream takes it. */
export interface Message {
  readonly role: string;
  readonly content?: unknown;
  readonly name?: string | undefined;
  readonly tool_calls?: unknown;
  readonly tool_call_id?: string | undefined;
}

export type UpstreamErrorPolicy = "fail" | "restart" | "continue";

export type Ending = "completed" | "failed" | "cancelled";

export interface WebhookTarget {
  readonly url: string;
  /** Default: all three. */
  readonly events?: readonly Ending[] | undefined;
}

/** The object `tokencast` of a request, as it is sent. */
export interface TokencastFields {
  readonly priority?: number | undefined;
  readonly delay_seconds?: number | undefined;
  readonly run_at?: number | undefined;
  readonly queue_timeout?: number | undefined;
  readonly group?: string | undefined;
  readonly webhook?: WebhookTarget | undefined;
  readonly on_upstream_error?: UpstreamErrorPolicy | undefined;
  readonly ttl_seconds?: number | undefined;
  readonly metadata?: Readonly<Record<string, string>> | undefined;
}

/** A chat.completions body. `enqueue` accepts every other parameter of the upstream too. */
export interface GenerationRequest {
  readonly model: string;
  readonly messages: readonly Message[];
  readonly tokencast?: TokencastFields | undefined;
  readonly max_tokens?: number | null | undefined;
  readonly max_completion_tokens?: number | null | undefined;
  readonly temperature?: number | null | undefined;
  readonly top_p?: number | null | undefined;
  readonly n?: number | null | undefined;
  readonly seed?: number | null | undefined;
  readonly stop?: string | readonly string[] | null | undefined;
  readonly tools?: readonly unknown[] | undefined;
  readonly tool_choice?: unknown;
  readonly response_format?: unknown;
  readonly reasoning_effort?: unknown;
}

// --- events -----------------------------------------------------------------------------------------------------------

interface Event<Name extends string, Data> {
  readonly name: Name;
  /** The position from which `after` continues. */
  readonly cursor: string;
  readonly data: Data;
  /** The content that a chunk adds to choice 0; empty for all other events. */
  readonly text: string;
}

export interface Delta {
  readonly role?: string;
  readonly content?: unknown;
  readonly [field: string]: unknown;
}

export interface ChunkChoice {
  readonly index?: number;
  readonly delta?: Delta;
  readonly finish_reason?: string | null;
  readonly [field: string]: unknown;
}

/** A chunk of the upstream, unchanged. */
export interface Chunk {
  readonly id?: string;
  readonly choices?: readonly ChunkChoice[] | null;
  readonly usage?: Usage | null;
  readonly [field: string]: unknown;
}

export type CreatedEvent = Event<"created", { readonly model: string; readonly created_at: number }>;
export type StartedEvent = Event<"started", { readonly attempt: number; readonly upstream?: string | null }>;
export type WaitingEvent = Event<"waiting", { readonly reason: WaitingReason; readonly retry_at: number | null }>;
export type ChunkEvent = Event<"chunk", Chunk>;
/** A new attempt begins: discard the text shown so far. */
export type ResetEvent = Event<
  "reset",
  { readonly attempt: number; readonly reason: string; readonly upstream?: string | null }
>;
/** Events are missing: the history was trimmed, and continues with `earliest`. */
export type GapEvent = Event<"gap", { readonly requested: string; readonly earliest: string; readonly latest: string }>;
export type CompletedEvent = Event<
  "completed",
  { readonly finish_reason: string | null; readonly usage: Usage | null }
>;
export type FailedEvent = Event<"failed", { readonly error: GenerationError }>;
export type CancelledEvent = Event<"cancelled", { readonly usage: Usage | null }>;
/** The generation was deleted while it was followed. */
export type GoneEvent = Event<"gone", Readonly<Record<string, never>>>;

/** An event of a generation. `name` discriminates the union. */
export type GenerationEvent =
  | CreatedEvent
  | StartedEvent
  | WaitingEvent
  | ChunkEvent
  | ResetEvent
  | GapEvent
  | CompletedEvent
  | FailedEvent
  | CancelledEvent
  | GoneEvent;

export type ActivityName =
  "created" | "started" | "waiting" | "reset" | "completed" | "failed" | "cancelled" | "queued" | "gone";

/** A lifecycle event of any generation, with the generation as it is now. It can come twice: keep the newest by id. */
export type ActivityEvent =
  | { readonly name: ActivityName; readonly cursor: string; readonly data: GenerationSummary }
  | { readonly name: "gap"; readonly cursor: string; readonly data: Readonly<Record<string, unknown>> };

/** What the client adds to a request: the object `tokencast`, and an idempotency key. */

import { timeOf, type Time } from "./listing.js";
import type { CallOptions } from "./transport.js";
import type { GenerationRequest, TokencastFields, UpstreamErrorPolicy, WebhookTarget } from "./types.js";

export interface IdempotentOptions extends CallOptions {
  /** The same key with the same request creates nothing new. Default: a random one for each call. */
  readonly idempotencyKey?: string | undefined;
}

/** What Tokencast does with a generation. Nothing of it reaches the upstream. */
export interface EnqueueOptions extends IdempotentOptions {
  /** From 1 (first) to 5. Default: 3. */
  readonly priority?: number | undefined;
  /** Seconds for which it does not run. */
  readonly delaySeconds?: number | undefined;
  /** Time before which it does not run. */
  readonly runAt?: Date | number | undefined;
  /** Seconds for which it may wait. */
  readonly queueTimeoutSeconds?: number | undefined;
  readonly group?: string | undefined;
  /** URL to which its end is announced. */
  readonly webhook?: string | WebhookTarget | undefined;
  readonly onUpstreamError?: UpstreamErrorPolicy | undefined;
  /** Seconds for which it is kept after its end. */
  readonly ttlSeconds?: number | undefined;
  readonly metadata?: Readonly<Record<string, string>> | undefined;
}

/** A body with the options in its object `tokencast`. */
export function withOptions(request: GenerationRequest, options: EnqueueOptions): GenerationRequest {
  const fields = { ...fieldsOf(options), ...request.tokencast };
  const isEmpty = Object.values(fields).every((value) => value === undefined);
  return isEmpty ? request : { ...request, tokencast: fields };
}

function fieldsOf(options: EnqueueOptions): TokencastFields {
  const { webhook, runAt } = options;
  return {
    priority: options.priority,
    delay_seconds: options.delaySeconds,
    run_at: timeOf(runAt as Exclude<Time, string> | undefined) as number | undefined,
    queue_timeout: options.queueTimeoutSeconds,
    group: options.group,
    webhook: typeof webhook === "string" ? { url: webhook } : webhook,
    on_upstream_error: options.onUpstreamError,
    ttl_seconds: options.ttlSeconds,
    metadata: options.metadata,
  };
}

/** The header of an idempotency key: the caller's, or a random one, so that a repetition of the request is safe. */
export function keyHeaders(key: string = randomKey()): { readonly "idempotency-key": string } {
  if (!/^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(key)) throw new TypeError("idempotencyKey must be ASCII text");
  return { "idempotency-key": key };
}

/** 128 random bits. `crypto.randomUUID` is missing in pages that were not loaded over HTTPS. */
function randomKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

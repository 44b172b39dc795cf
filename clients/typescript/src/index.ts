/** The client of Tokencast: `new Client({ baseUrl, apiKey })`. */

export {
  Client,
  type ActivityOptions,
  type FollowOptions,
  type RequestOptions,
  type RetryAllOptions,
  type WaitOptions,
} from "./client.js";
export type { CompletionChoice } from "./completion/completion.js";
export type { ToolCall } from "./completion/tool-calls.js";
export {
  BadRequest,
  Conflict,
  Forbidden,
  GenerationCancelled,
  GenerationFailed,
  Gone,
  NotFound,
  RateLimited,
  ServerError,
  TokencastError,
  Unauthorized,
  UnexpectedResponse,
  Unreachable,
  WaitTimeout,
  WebhookVerificationError,
} from "./errors.js";
export type { ConnectionOptions, ConnectionState, StreamOptions } from "./follow.js";
export type { Conditions, ListFilters, Listing, Time } from "./listing.js";
export type { EnqueueOptions, IdempotentOptions } from "./requests.js";
export { GenerationReader, type GenerationState } from "./state.js";
export type { CallOptions, ClientOptions, Fetch, TokenSource } from "./transport.js";
export type * from "./types.js";
export { verifyWebhook, type RequestHeaders, type VerifyOptions, type WebhookEvent } from "./webhooks.js";

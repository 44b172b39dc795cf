import type { Generation } from "./types.js";

/** What is known of a failed request. `status` is null without a response. */
export interface ErrorDetails {
  readonly status?: number | null;
  readonly code?: string | null;
  readonly type?: string | null;
  readonly param?: string | null;
  readonly requestId?: string | null;
  readonly retryAfter?: number | null;
  readonly cause?: unknown;
}

/** Root of all errors of the client. The reason of an aborted signal is thrown as it is. */
export class TokencastError extends Error {
  override readonly name: string = "TokencastError";
  /** HTTP status; null without a response. */
  readonly status: number | null;
  /** Code of the error, as the gateway names it. */
  readonly code: string | null;
  readonly type: string | null;
  /** The field or parameter that is wrong. */
  readonly param: string | null;
  /** `x-request-id` of the response, for the operator. */
  readonly requestId: string | null;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.status = details.status ?? null;
    this.code = details.code ?? null;
    this.type = details.type ?? null;
    this.param = details.param ?? null;
    this.requestId = details.requestId ?? null;
  }
}

/** 400, 413, 415, 422: the request is not valid. */
export class BadRequest extends TokencastError {
  override readonly name: string = "BadRequest";
}

/** 401: no key, a wrong one, or a token that has expired. */
export class Unauthorized extends TokencastError {
  override readonly name: string = "Unauthorized";
}

/** 403: the key may not do this. */
export class Forbidden extends TokencastError {
  override readonly name: string = "Forbidden";
}

/** 404: unknown, or another tenant's. */
export class NotFound extends TokencastError {
  override readonly name: string = "NotFound";
}

/** 409, or an idempotency key that was used with another request. */
export class Conflict extends TokencastError {
  override readonly name: string = "Conflict";
}

/** 410: deleted, or older than its retention. */
export class Gone extends TokencastError {
  override readonly name: string = "Gone";
}

/** 429: a limit of the tenant. */
export class RateLimited extends TokencastError {
  override readonly name: string = "RateLimited";
  /** Seconds after which to try again; null if the gateway did not say. */
  readonly retryAfter: number | null;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.retryAfter = details.retryAfter ?? null;
  }
}

/** 5xx: the gateway, or a proxy before it, cannot serve the request now. */
export class ServerError extends TokencastError {
  override readonly name: string = "ServerError";
  /** Seconds after which to try again; null if the gateway did not say. */
  readonly retryAfter: number | null;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.retryAfter = details.retryAfter ?? null;
  }
}

/** The gateway does not respond. `cause` has the reason. */
export class Unreachable extends TokencastError {
  override readonly name: string = "Unreachable";
}

/** The generation has not ended in time. It continues. */
export class WaitTimeout extends TokencastError {
  override readonly name: string = "WaitTimeout";
}

/** The server is not a Tokencast gateway, or not one that this version knows. */
export class UnexpectedResponse extends TokencastError {
  override readonly name: string = "UnexpectedResponse";
}

/** A webhook is not authentic, or is too old. */
export class WebhookVerificationError extends TokencastError {
  override readonly name: string = "WebhookVerificationError";
}

/** The generation failed, so it has no final text. */
export class GenerationFailed extends TokencastError {
  override readonly name: string = "GenerationFailed";
  readonly generation: Generation;

  constructor(generation: Generation) {
    const { message, code, type } = generation.error ?? { message: "The generation failed.", code: null, type: null };
    super(message, { code, type });
    this.generation = generation;
  }
}

/** The generation was cancelled, so it has no final text. */
export class GenerationCancelled extends TokencastError {
  override readonly name: string = "GenerationCancelled";
  readonly generation: Generation;

  constructor(generation: Generation) {
    super("The generation was cancelled.", { code: "generation_cancelled" });
    this.generation = generation;
  }
}

const BY_STATUS: Readonly<Record<number, typeof TokencastError>> = {
  401: Unauthorized,
  403: Forbidden,
  404: NotFound,
  409: Conflict,
  410: Gone,
  429: RateLimited,
};

/** Return the error of a status. */
export function errorOfStatus(status: number, message: string, details: ErrorDetails): TokencastError {
  const isConflict = details.code === "idempotency_conflict";
  const other = status >= 500 ? ServerError : status >= 400 ? BadRequest : UnexpectedResponse;
  const kind = isConflict ? Conflict : (BY_STATUS[status] ?? other);
  return new kind(message, { ...details, status });
}

/** Return the error of a response, with the gateway's message if it has one. Reads the body. */
export async function errorOfResponse(response: Response): Promise<TokencastError> {
  const given = detailOf(await response.json().catch(() => null));
  const message =
    textOf(given["message"]) ?? `The server responded with ${response.status} ${response.statusText}`.trim();
  return errorOfStatus(response.status, message, {
    code: textOf(given["code"]),
    type: textOf(given["type"]),
    param: textOf(given["param"]),
    requestId: response.headers.get("x-request-id"),
    retryAfter: retryAfterOf(response.headers),
  });
}

/** Return the error of one item of a batch. */
export function errorOfItem(given: unknown, requestId: string | null): TokencastError {
  const detail = detailOf(given);
  const status = typeof detail["status"] === "number" ? detail["status"] : 500;
  const wait = detail["retry_after"];
  return errorOfStatus(status, textOf(detail["message"]) ?? `Refused with status ${status}`, {
    code: textOf(detail["code"]),
    type: textOf(detail["type"]),
    param: textOf(detail["param"]),
    retryAfter: typeof wait === "number" ? wait : null,
    requestId,
  });
}

/** Seconds of a Retry-After header; null without one, and for a date. */
export function retryAfterOf(headers: Headers): number | null {
  const text = headers.get("retry-after") ?? "";
  return /^\d{1,9}(\.\d+)?$/.test(text) ? Number(text) : null;
}

function detailOf(body: unknown): Readonly<Record<string, unknown>> {
  const error = isRecord(body) ? body["error"] : null;
  return isRecord(error) ? error : {};
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null;

const textOf = (value: unknown): string | null => (typeof value === "string" ? value : null);

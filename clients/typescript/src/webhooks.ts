/** Verification of webhooks (https://www.standardwebhooks.com), with WebCrypto: in Node.js, Deno, Bun and workers. */

import { WebhookVerificationError } from "./errors.js";
import type { Ending, GenerationSummary } from "./types.js";

/** The announcement that a generation has ended. */
export interface WebhookEvent {
  readonly type: `generation.${Ending}`;
  /** When it ended, by ISO 8601. */
  readonly timestamp: string;
  /** The generation as it was then, without its text. */
  readonly data: GenerationSummary;
  /** `webhook-id`: the same at each repetition, so a result that is stored under it is stored once. */
  readonly id: string;
}

export interface VerifyOptions {
  /** Seconds by which the clocks may differ, and a delivery may take. Default: 300. */
  readonly tolerance?: number | undefined;
}

/** Headers of a request: those of `fetch`, or of `node:http`. */
export type RequestHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>;

/** Return the event of a webhook whose signature is right. Throws WebhookVerificationError.
 *
 * `body` is the body as it was received, not parsed. `secret` is `TOKENCAST_WEBHOOK_SECRET`; while it is replaced,
 * several secrets may be given. */
export async function verifyWebhook(
  body: string | Uint8Array | ArrayBuffer,
  headers: RequestHeaders,
  secret: string | readonly string[],
  options: VerifyOptions = {},
): Promise<WebhookEvent> {
  const id = headerOf(headers, "webhook-id");
  const timestamp = headerOf(headers, "webhook-timestamp");
  checkTime(timestamp, options.tolerance ?? 300);
  const bytes = bytesOf(body);
  const signed = joined(new TextEncoder().encode(`${id}.${timestamp}.`), bytes);
  const signatures = headerOf(headers, "webhook-signature").split(" ");
  const secrets = typeof secret === "string" ? secret.split(",") : secret;
  for (const one of secrets) if (await isSigned(signed, signatures, one.trim())) return eventOf(bytes, id);
  throw new WebhookVerificationError("The signature does not match.");
}

function checkTime(timestamp: string, tolerance: number): void {
  const age = Date.now() / 1000 - (/^\d{1,15}$/.test(timestamp) ? Number(timestamp) : Number.NaN);
  if (!(Math.abs(age) <= tolerance)) throw new WebhookVerificationError("The timestamp is not within the tolerance.");
}

async function isSigned(
  signed: Uint8Array<ArrayBuffer>,
  signatures: readonly string[],
  secret: string,
): Promise<boolean> {
  const usage = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", secretOf(secret), usage, false, ["verify"]);
  for (const signature of signatures) {
    const given = signature.startsWith("v1,") ? fromBase64(signature.slice(3)) : null;
    if (given && (await crypto.subtle.verify("HMAC", key, given, signed))) return true; // in constant time
  }
  return false;
}

function secretOf(secret: string): Uint8Array<ArrayBuffer> {
  const key = fromBase64(secret.replace(/^whsec_/, ""));
  if (!key?.length) throw new TypeError("The secret of webhooks must be whsec_ and base64");
  return key;
}

function eventOf(body: Uint8Array, id: string): WebhookEvent {
  try {
    return { ...(JSON.parse(new TextDecoder().decode(body)) as Omit<WebhookEvent, "id">), id };
  } catch (cause) {
    throw new WebhookVerificationError("The body is not JSON.", { cause });
  }
}

function headerOf(headers: RequestHeaders, name: string): string {
  const value = headers instanceof Headers ? headers.get(name) : recordOf(headers, name);
  if (!value) throw new WebhookVerificationError(`The header ${name} is missing.`);
  return value;
}

function recordOf(
  headers: Readonly<Record<string, string | readonly string[] | undefined>>,
  name: string,
): string | null {
  const found = Object.entries(headers).find(([each]) => each.toLowerCase() === name)?.[1];
  return (typeof found === "string" ? found : found?.[0]) ?? null;
}

function bytesOf(body: string | Uint8Array | ArrayBuffer): Uint8Array {
  if (typeof body === "string") return new TextEncoder().encode(body);
  return body instanceof Uint8Array ? body : new Uint8Array(body);
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> | null {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}

// Why a generation waits, in words.

import { duration } from "./page.js";

/** The reasons of the queue, in a word or two. */
export const REASONS = {
  queued: "workers are busy",
  upstream_limit: "upstream limit",
  upstream_busy: "upstream busy",
  upstream_down: "upstream down",
  tenant_limit: "tenant limit",
  paused: "paused",
  scheduled: "scheduled",
};

const SENTENCES = {
  queued: () => "Waits for a free worker",
  upstream_limit: (upstream) => `Waits for ${upstream}, whose limit is reached`,
  upstream_busy: (upstream) => `Waits for ${upstream}, which refused calls (429 or 503)`,
  upstream_down: (upstream) => `Waits for ${upstream}, whose last calls failed (its circuit is open)`,
  tenant_limit: () => "Waits because the limit of its tenant's running generations is reached",
  paused: () => "Waits because the queue is paused",
  scheduled: () => "Scheduled",
};

export const reasonOf = ({ reason }) => REASONS[reason] ?? reason;

/** Formats a time: without the date if it is today. */
export function clock(seconds) {
  const time = new Date(seconds * 1000);
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString() : time.toLocaleString();
}

/** "the upstream a", "one of the upstreams a, b"; "the upstream" if its name is unknown. */
function named(upstreams) {
  if (upstreams.length > 1) return `one of the upstreams ${upstreams.join(", ")}`;
  return `the upstream${upstreams.length ? ` ${upstreams[0]}` : ""}`;
}

/**
 * Returns a sentence: what a generation waits for, until when, and at which position.
 * @param {{reason: string, retry_at: ?number, position?: ?number}} queue  @param {string[]} upstreams
 */
export function sentence(queue, upstreams = []) {
  const { reason, retry_at, position } = queue;
  const what = SENTENCES[reason]?.(named(upstreams)) ?? `Waits (${reason})`;
  const when = retry_at ? `${reason === "scheduled" ? " for" : "; next try at"} ${clock(retry_at)}` : "";
  return `${what}${when}${position ? `; position ${position}` : ""}.`;
}

/** What a queued generation waits for that a worker has. */
export const CALLED = "A worker has called the upstream, which has not answered yet.";

const INTERRUPTIONS = {
  worker_lost: "Worker lost",
  worker_stopped: "Its worker has stopped",
  upstream_error: "The upstream failed",
};

/**
 * Returns a sentence: why an attempt was given up, and what the generation waits for now.
 * @param {string} reason  @param {?{reason: string, position?: ?number}} queue  null if a worker has it again
 */
export function interruption(reason, queue, upstreams = []) {
  const what = INTERRUPTIONS[reason] ?? `Interrupted (${reason})`;
  if (!queue) return `${what}; another attempt is about to begin.`;
  if (queue.reason !== "queued") return `${what}. ${sentence(queue, upstreams)}`;
  const others = queue.position ? queue.position - 1 : null;
  const place = others === null ? "" : others ? `; ${others} before it` : "; it is the next one";
  return `${what}, waiting for another${reason === "upstream_error" ? " attempt" : ""}${place}.`;
}

/**
 * Returns a sentence about a worker that has not renewed its lease in time; "" if it has. A living worker renews it
 * when a third of it is over, and looks six times per lease.
 * @param {?{renewed_at: number, expires_at: number}} lease  @param {number} now  unix ms
 */
export function silentWorker(lease, now) {
  if (!lease) return "";
  const left = lease.expires_at - now / 1000;
  if (left > (lease.expires_at - lease.renewed_at) / 3) return "";
  const since = `No sign of life from its worker for ${duration(now - lease.renewed_at * 1000)}`;
  return left > 0 ? `${since}; another one takes over in ${duration(left * 1000)}.` : `${since}: the worker is lost.`;
}

/** Returns the same in few words, for a row: "upstream busy (azure) until 12:03:20", "workers are busy, position 3". */
export function brief(queue) {
  const names = queue.reason.startsWith("upstream") && queue.upstreams?.length ? ` (${queue.upstreams.join(", ")})` : "";
  const until = queue.retry_at ? `until ${clock(queue.retry_at)}` : "";
  const place = queue.position ? `, position ${queue.position}` : "";
  return [reasonOf(queue) + names + place, until].filter(Boolean).join(" ");
}

// What operators may do: pause and resume, and change the limits of upstreams.

import { ask } from "./gateway.js";

const FORBIDDEN = 403;
const send = (method, path, body) => ask(path, { method, body: JSON.stringify(body) });
const pathOf = (name) => `/v1/upstreams/${encodeURIComponent(name)}`;

/** @param {{upstream?: string, tenant?: string}} what  everything if it is empty */
export const pause = (what) => send("POST", "/v1/queue/pause", what);
export const resume = (what) => send("POST", "/v1/queue/resume", what);
export const change = (upstream, limits) => send("PATCH", pathOf(upstream), limits);

let allowed = null;

/**
 * Returns whether the caller is an operator. The gateway is asked once, with a change of nothing, which it refuses to
 * others.
 * @param {string} upstream  name of any upstream
 */
export async function isOperator(upstream) {
  if (allowed !== null) return allowed;
  const told = await change(upstream, {}).catch((error) => error);
  if (told?.passes) return false; // no answer: ask again next time
  allowed = told?.status === undefined || told.status !== FORBIDDEN;
  return allowed;
}

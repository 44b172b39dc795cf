// What the caller's key may do, and what operators do. The gateway refuses the rest in any case; the page leaves it out.

import { ask } from "./gateway.js";

/** @typedef {{tenant: string, role: "tenant" | "read" | "operator", tenants: string[]}} Caller */

/** @type {?Promise<Caller>} */
let known = null;

/** Asks the gateway once, and again after a failure. Elements with `data-needs` are hidden by the role (style.css). */
export function me() {
  known ??= ask("/v1/me").then(
    (told) => {
      document.body.dataset.role = told.role;
      return told;
    },
    (error) => {
      known = null;
      throw error;
    },
  );
  return known;
}

export const isOperator = async () => (await me()).role === "operator";

// --- operators ---

const send = (method, path, body) => ask(path, { method, body: JSON.stringify(body) });
const pathOf = (name) => `/v1/upstreams/${encodeURIComponent(name)}`;

/** @param {{upstream?: string, tenant?: string}} what  everything if it is empty */
export const pause = (what) => send("POST", "/v1/queue/pause", what);
export const resume = (what) => send("POST", "/v1/queue/resume", what);
export const change = (upstream, limits) => send("PATCH", pathOf(upstream), limits);

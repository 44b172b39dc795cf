// What operators may do: pause and resume, and change the limits of upstreams.

import { ask } from "./gateway.js";

const send = (method, path, body) => ask(path, { method, body: JSON.stringify(body) });
const pathOf = (name) => `/v1/upstreams/${encodeURIComponent(name)}`;

/** @param {{upstream?: string, tenant?: string}} what  everything if it is empty */
export const pause = (what) => send("POST", "/v1/queue/pause", what);
export const resume = (what) => send("POST", "/v1/queue/resume", what);
export const change = (upstream, limits) => send("PATCH", pathOf(upstream), limits);

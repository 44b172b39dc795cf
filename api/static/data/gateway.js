// Requests to the gateway: with the API key, if there is one, and with readable errors.

const KEY = "tokencast-key";
const TIMEOUT = 10_000; // ms
export const UNAUTHORISED = 401;

/** The events that end a generation, or the knowledge of it. */
export const ENDINGS = new Set(["completed", "failed", "cancelled", "gone"]);

/** Dispatches `denied` when the gateway requires a key, or another one. */
export const access = new EventTarget();

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const keep = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));
export const authorization = () => (key() ? { authorization: `Bearer ${key()}` } : {});
export const deny = () => access.dispatchEvent(new Event("denied"));

export const pathOf = (id) => `/v1/generations/${id}`;

export class Refusal extends Error {
  /** @param {number} status 0 if there was no response */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether a retry can succeed. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let ahead = 0; // ms that the gateway's clock is ahead of this machine's, if they differ by more than 3 s

/** The current time, unix ms, by the gateway's clock. */
export const now = () => Date.now() + ahead;

/** Sends a request and returns the JSON of the response; null for 204. Throws a Refusal. */
export async function ask(path, { method = "GET", body, headers = {}, timeout = TIMEOUT } = {}) {
  const json = body === undefined ? {} : { "content-type": "application/json" };
  const signal = AbortSignal.timeout(timeout);
  const all = { accept: "application/json", ...json, ...authorization(), ...headers };
  const response = await fetch(path, { method, body, headers: all, signal }).catch(() => {
    throw new Refusal(0, "The gateway does not answer.");
  });
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => null); // the error page of a proxy is not JSON
  const date = Date.parse(response.headers.get("date") ?? "");
  if (date) ahead = Math.abs(date - Date.now()) > 3000 ? date - Date.now() : 0;
  if (response.ok && answer) return answer;
  if (response.status === UNAUTHORISED) deny();
  throw new Refusal(response.status, answer?.error?.message ?? "The gateway reported an error.");
}

/** Repeats a request until it succeeds or is refused for good; gives up when `signal` is aborted. */
export async function insist(path, signal, ontrouble = () => {}) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 5000)) {
    try {
      return await ask(path);
    } catch (error) {
      if (!error.passes || signal.aborted) throw error;
      ontrouble(error);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
    signal.throwIfAborted();
  }
}

/** Enqueues a generation; a repetition with the same `idempotencyKey`, after a lost response, returns the same one. */
export function enqueue(request, idempotencyKey) {
  const headers = { "idempotency-key": idempotencyKey };
  return ask("/v1/generations", { method: "POST", body: JSON.stringify(request), headers });
}

export const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

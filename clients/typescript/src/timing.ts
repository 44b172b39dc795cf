/** Waiting that ends with an AbortSignal. */

/** An AbortSignal that follows another one, until `close`. `AbortSignal.any` would keep a reference for the lifetime of
 * the other signal, and is missing in Node.js 20.0. */
export class LinkedSignal {
  readonly #controller = new AbortController();
  readonly #parent: AbortSignal | undefined;
  readonly #follow: () => void;

  constructor(parent: AbortSignal | undefined) {
    this.#parent = parent;
    this.#follow = () => this.#controller.abort(parent?.reason);
    if (parent?.aborted) this.#follow();
    else parent?.addEventListener("abort", this.#follow);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  abort(reason: unknown): void {
    this.#controller.abort(reason);
  }

  /** Stop following, and end what still uses the signal. */
  close(): void {
    this.#parent?.removeEventListener("abort", this.#follow);
    this.#controller.abort();
  }
}

/** Wait for a time in milliseconds, or until a browser is online again. Throws the reason of an aborted signal. */
export function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const page = globalThis as {
      addEventListener?: typeof addEventListener;
      removeEventListener?: typeof removeEventListener;
    };
    const end = (settle: () => void) => () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      page.removeEventListener?.("online", wake);
      settle();
    };
    const wake = end(resolve);
    const abort = end(() => reject(signal?.reason));
    const timer = setTimeout(wake, ms);
    if (signal?.aborted) return abort();
    signal?.addEventListener("abort", abort);
    page.addEventListener?.("online", wake);
  });
}

/** Exponential delay in milliseconds before a repetition, with jitter: clients must not return all at once. */
export function backoff(failures: number): number {
  return Math.min(FIRST_WAIT * 2 ** Math.min(failures, 10), LONGEST_WAIT) * (0.5 + Math.random() / 2);
}

const FIRST_WAIT = 250;
const LONGEST_WAIT = 5_000;

/** Generations that components follow: one connection for each, however many components show it. */

import type { Client } from "./client.js";
import { TokencastError } from "./errors.js";
import type { ConnectionState } from "./follow.js";
import { GenerationReader, INITIAL_STATE, type GenerationState } from "./state.js";

/** The state of a generation, and of the connection that follows it. */
export interface FollowedGeneration extends GenerationState {
  /** `closed`: no more will come. */
  readonly connection: ConnectionState | "closed";
}

export const INITIAL: FollowedGeneration = Object.freeze({ ...INITIAL_STATE, connection: "connecting" });

const LONGEST_FRAME = 500; // ms; in a hidden page there are no frames, but its components may still act on an ending

/** Follows one generation while it has listeners, and tells them at most once per animation frame. */
class FollowedStore {
  snapshot: FollowedGeneration = INITIAL;
  readonly #listeners = new Set<() => void>();
  readonly #abort = new AbortController();
  readonly #reader = new GenerationReader();
  #connection: FollowedGeneration["connection"] = "connecting";
  #failure: Partial<GenerationState> = {};
  #cancelFrame: (() => void) | null = null;

  constructor(
    private readonly client: Client,
    private readonly id: string,
  ) {}

  get isUsed(): boolean {
    return this.#listeners.size > 0;
  }

  add(listener: () => void): void {
    this.#listeners.add(listener);
  }

  remove(listener: () => void): void {
    this.#listeners.delete(listener);
  }

  /** Follow the generation to its end, or until `stop`. */
  async run(): Promise<void> {
    const { signal } = this.#abort;
    try {
      const onConnection = (state: ConnectionState): void => {
        if (state !== this.#connection) this.#change(() => (this.#connection = state));
      };
      const events = this.client.follow(this.id, { signal, onConnection, giveUpAfter: Infinity });
      for await (const event of events) this.#change(() => this.#reader.add(event));
    } catch (error) {
      if (signal.aborted) return;
      this.#change(() => (this.#failure = failureOf(error)));
    }
    this.#change(() => (this.#connection = "closed"));
  }

  stop(): void {
    this.#abort.abort();
    this.#cancelFrame?.();
  }

  #change(change: () => void): void {
    change();
    this.#cancelFrame ??= onNextFrame(() => this.#publish());
  }

  #publish(): void {
    this.#cancelFrame = null;
    this.snapshot = { ...this.#reader.state, ...this.#failure, connection: this.#connection };
    for (const listener of this.#listeners) listener();
  }
}

/** What a final error of the stream tells about the generation. */
function failureOf(error: unknown): Partial<GenerationState> {
  const refused = error instanceof TokencastError ? error : new TokencastError(String(error), { cause: error });
  const isGone = refused.status === 404 || refused.status === 410;
  return { ended: true, error: refused, ...(isGone ? { status: "gone" as const } : {}) };
}

function onNextFrame(run: () => void): () => void {
  const hasFrames = typeof requestAnimationFrame === "function";
  const frame = hasFrames ? requestAnimationFrame(() => first()) : 0;
  const timer = setTimeout(() => first(), hasFrames ? LONGEST_FRAME : 16);
  const cancel = (): void => {
    clearTimeout(timer);
    if (hasFrames) cancelAnimationFrame(frame);
  };
  const first = (): void => {
    cancel();
    run();
  };
  return cancel;
}

const stores = new WeakMap<Client, Map<string, FollowedStore>>();

function storesOf(client: Client): Map<string, FollowedStore> {
  const known = stores.get(client) ?? new Map<string, FollowedStore>();
  stores.set(client, known);
  return known;
}

/** The state of a generation, if something follows it. */
export const snapshotOf = (client: Client, id: string): FollowedGeneration =>
  storesOf(client).get(id)?.snapshot ?? INITIAL;

/** Follow a generation and call `listener` when its state has changed. Return the function that ends this. */
export function subscribe(client: Client, id: string, listener: () => void): () => void {
  const all = storesOf(client);
  let store = all.get(id);
  if (!store) {
    all.set(id, (store = new FollowedStore(client, id)));
    void store.run();
  }
  const followed = store;
  followed.add(listener);
  return () => {
    followed.remove(listener);
    // React unmounts and mounts again in the same task: in StrictMode, and when one component replaces another.
    queueMicrotask(() => {
      if (followed.isUsed || all.get(id) !== followed) return;
      all.delete(id);
      followed.stop();
    });
  };
}

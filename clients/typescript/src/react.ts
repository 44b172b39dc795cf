"use client";

/** React: `useGeneration(id)` gives a component the live state of a generation. */

import { createContext, createElement, useCallback, useContext, useMemo, useSyncExternalStore } from "react";
import type { ReactElement, ReactNode } from "react";

import { Client } from "./client.js";
import { INITIAL, snapshotOf, subscribe, type FollowedGeneration } from "./store.js";

export type { FollowedGeneration } from "./store.js";

const ClientContext = createContext<Client | null>(null);

/** The client of all components below. Create it once, outside of components. */
export function TokencastProvider(props: { readonly client: Client; readonly children?: ReactNode }): ReactElement {
  return createElement(ClientContext.Provider, { value: props.client }, props.children);
}

let ownOrigin: Client | undefined;

/** The client of the nearest `TokencastProvider`; without one, a client of the page's own origin. */
export function useClient(): Client {
  return useContext(ClientContext) ?? (ownOrigin ??= new Client());
}

export interface UseGenerationOptions {
  /** Default: that of `useClient`. */
  readonly client?: Client | undefined;
  /** Cancels the generation instead of the client: a page that reads with stream tokens asks its own server. */
  readonly cancel?: ((id: string) => Promise<unknown>) | undefined;
}

export interface UsedGeneration extends FollowedGeneration {
  /** Cancel the generation. The state changes when its `cancelled` event arrives. */
  readonly cancel: () => Promise<void>;
}

const unused = (): (() => void) => () => undefined;

/** Follow a generation while the component is mounted; null or undefined: none yet. It begins at the first event, so a
 * page that was loaded again shows the same text. */
export function useGeneration(id: string | null | undefined, options: UseGenerationOptions = {}): UsedGeneration {
  const inherited = useClient();
  const client = options.client ?? inherited;
  const follow = useCallback((listener: () => void) => (id ? subscribe(client, id, listener) : unused()), [client, id]);
  const snapshot = useCallback(() => (id ? snapshotOf(client, id) : INITIAL), [client, id]);
  const state = useSyncExternalStore(follow, snapshot, initial);
  const instead = options.cancel;
  const cancel = useCallback(async () => {
    if (id) await (instead ? instead(id) : client.cancel(id));
  }, [client, id, instead]);
  return useMemo(() => ({ ...state, cancel }), [state, cancel]);
}

/** The state on a server, and of the first render in the page. */
const initial = (): FollowedGeneration => INITIAL;

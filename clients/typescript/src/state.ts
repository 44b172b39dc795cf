/** The state of a generation as its events tell it: what a page shows. */

import { Completion, type CompletionChoice } from "./completion/completion.js";
import type { ToolCall } from "./completion/tool-calls.js";
import { isObject } from "./completion/values.js";
import type { GenerationError, GenerationEvent, Status, Usage, WaitingReason } from "./types.js";

export interface GenerationState {
  /** `gone`: deleted, or unknown. */
  readonly status: Status | "gone";
  /** Of choice 0, as are `reasoning`, `refusal`, `toolCalls` and `finishReason`. */
  readonly content: string;
  readonly reasoning: string;
  readonly refusal: string;
  readonly toolCalls: readonly ToolCall[];
  readonly finishReason: string | null;
  /** All choices. */
  readonly choices: readonly CompletionChoice[];
  /** Number of the attempt, from 1; 0 before the first. */
  readonly attempt: number;
  /** Why it waits, before the first token. */
  readonly waiting: { readonly reason: WaitingReason; readonly retry_at: number | null } | null;
  readonly usage: Usage | null;
  readonly error: GenerationError | null;
  /** Whether the beginning is missing, because it is no longer kept. */
  readonly incomplete: boolean;
  /** Whether no more will come. */
  readonly ended: boolean;
}

export const INITIAL_STATE: GenerationState = Object.freeze({
  status: "queued",
  content: "",
  reasoning: "",
  refusal: "",
  toolCalls: Object.freeze([]),
  finishReason: null,
  choices: Object.freeze([]),
  attempt: 0,
  waiting: null,
  usage: null,
  error: null,
  incomplete: false,
  ended: false,
});

/** Builds the state from the events of `follow`, in their order. */
export class GenerationReader {
  #completion = new Completion();
  #told: GenerationState = INITIAL_STATE; // without what the chunks contain
  #snapshot: GenerationState | null = INITIAL_STATE;

  /** The state now; the same object until something changes. */
  get state(): GenerationState {
    return (this.#snapshot ??= { ...this.#told, ...textsOf(this.#completion) });
  }

  add(event: GenerationEvent): void {
    this.#told = { ...this.#told, ...this.#change(event) };
    this.#snapshot = null;
  }

  #change(event: GenerationEvent): Partial<GenerationState> {
    switch (event.name) {
      case "created":
        return {};
      case "waiting":
        return { waiting: event.data };
      case "started":
        return { status: "in_progress", attempt: event.data.attempt, waiting: null };
      case "chunk":
        this.#completion.add(event.data);
        return isObject(event.data) && event.data.usage ? { usage: event.data.usage } : {};
      case "reset":
        this.#completion = new Completion();
        // With cursor 0-0 the whole log follows, from `created`.
        return {
          ...INITIAL_STATE,
          attempt: event.data.attempt,
          status: event.cursor === "0-0" ? "queued" : "in_progress",
        };
      case "gap":
        this.#completion = new Completion();
        return { incomplete: true };
      case "completed":
        return { ...ENDED, status: "completed", usage: event.data.usage ?? this.#told.usage };
      case "cancelled":
        return { ...ENDED, status: "cancelled", usage: event.data.usage ?? this.#told.usage };
      case "failed":
        return { ...ENDED, status: "failed", error: event.data.error };
      case "gone":
        return { ...ENDED, status: "gone" };
    }
  }
}

const ENDED = { ended: true, waiting: null } as const;

function textsOf(completion: Completion): Partial<GenerationState> {
  const { choices } = completion;
  const first = choices.find(({ index }) => index === 0);
  if (!first) return { choices };
  const { content, reasoning, refusal, toolCalls, finishReason } = first;
  return { choices, content, reasoning, refusal, toolCalls, finishReason };
}

/** Merges the chunks of one attempt into content, reasoning, refusal and tool calls, choice by choice.
 *
 * The rules are those by which the gateway merges messages: some upstreams send each piece twice, typed parts instead of
 * strings, decoded arguments, or calls without an index. */

import { readContent } from "./content.js";
import { ToolCalls, type ToolCall } from "./tool-calls.js";
import { indexOf, isObject, more, objectsOf, plain, type Fields } from "./values.js";

/** A choice of the completion as far as it is known. */
export interface CompletionChoice {
  readonly index: number;
  readonly content: string;
  readonly reasoning: string;
  readonly refusal: string;
  readonly toolCalls: readonly ToolCall[];
  readonly finishReason: string | null;
}

export class Completion {
  readonly #choices = new Map<number, ChoiceText>();

  /** Add a chunk of any form. */
  add(chunk: unknown): void {
    const choices = isObject(chunk) ? objectsOf(chunk["choices"]) : [];
    for (const [position, choice] of choices.entries()) {
      const index = indexOf(choice) ?? position;
      const known = this.#choices.get(index) ?? new ChoiceText(index);
      this.#choices.set(index, known);
      const { delta, message } = choice;
      if (isObject(delta)) known.add(delta, false);
      if (isObject(message)) known.add(unsaid(message, delta), true);
      known.finish(choice);
    }
  }

  /** The choices in the order of their indexes. */
  get choices(): readonly CompletionChoice[] {
    const choices = [...this.#choices.values()].map((choice) => choice.snapshot);
    return choices.sort((one, other) => one.index - other.index);
  }
}

/** The part of a message that the delta of the same choice lacks: some upstreams send each piece as both. */
function unsaid(message: Fields, delta: unknown): Fields {
  if (!isObject(delta)) return message;
  const isSaid = ([key, value]: [string, unknown]): boolean =>
    Object.hasOwn(delta, key) && JSON.stringify(delta[key]) === JSON.stringify(value);
  return Object.fromEntries(Object.entries(message).filter((entry) => !isSaid(entry)));
}

const NO_REASON: ReadonlySet<string> = new Set([
  "",
  "null",
  "none",
  "nil",
  "undefined",
  "unfinished",
  "not_finished",
  "in_progress",
  "running",
  "continue",
  "finish_reason_unspecified",
]);

class ChoiceText {
  readonly #index: number;
  #reasoning = "";
  #content = "";
  #refusal = "";
  #finishReason: string | null = null;
  readonly #calls = new ToolCalls();

  constructor(index: number) {
    this.#index = index;
  }

  get snapshot(): CompletionChoice {
    return {
      index: this.#index,
      content: this.#content,
      reasoning: this.#reasoning,
      refusal: this.#refusal,
      toolCalls: this.#calls.snapshot,
      finishReason: this.#finishReason,
    };
  }

  /** `whole`: a complete message, which may repeat pieces that came before. */
  add(message: Fields, whole: boolean): void {
    const content = readContent(message["content"]);
    const reasoning = plain(message["reasoning_content"]) || plain(message["reasoning"]) || detailsOf(message);
    this.#reasoning += more(this.#reasoning, reasoning + content.thoughts, whole);
    this.#content += more(this.#content, content.text, whole);
    this.#refusal += more(this.#refusal, plain(message["refusal"]) + content.refusal, whole);
    const calls = message["tool_calls"];
    const listed = (isObject(calls) ? [calls] : objectsOf(calls)).filter((call) => Object.keys(call).length);
    for (const [position, call] of listed.entries()) this.#calls.add(call, whole, position);
  }

  finish({ finish_reason: reason }: Fields): void {
    if (typeof reason === "string" && !NO_REASON.has(reason.trim().toLowerCase())) this.#finishReason = reason;
  }
}

/** The reasoning of upstreams that send it in no other field. */
const detailsOf = (message: Fields): string => plain(message["reasoning_details"] ?? message["thinking_blocks"] ?? "");

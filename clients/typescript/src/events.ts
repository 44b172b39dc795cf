/** The events of generations, from the messages of their streams. */

import { textOf } from "./completion/content.js";
import type { Received } from "./follow.js";
import type { GenerationEvent } from "./types.js";

type Name = GenerationEvent["name"];

const TERMINAL: ReadonlySet<string> = new Set<Name>(["completed", "failed", "cancelled", "gone"]);
const OTHERS: ReadonlySet<string> = new Set<Name>(["created", "started", "waiting", "chunk", "reset", "gap"]);

/** Events that are passed on whatever their cursor. */
const ALWAYS: ReadonlySet<string> = new Set<Name>(["reset", "gap", "gone"]);

export const isTerminal = ({ name }: GenerationEvent): boolean => TERMINAL.has(name);

/** The event of a message; undefined for one of a newer gateway. */
export function eventOf({ name, cursor, data }: Received): GenerationEvent | undefined {
  if (!TERMINAL.has(name) && !OTHERS.has(name)) return undefined;
  return { name, cursor, data, text: name === "chunk" ? textOf(data) : "" } as GenerationEvent;
}

/** The positions of several generations that are followed on one connection. */
export class Cursors {
  readonly #cursors = new Map<string, string>();

  /** Each name is an id, or an id, `@` and a cursor. */
  constructor(names: Iterable<string>) {
    for (const name of names) {
      const [id = "", cursor = ""] = name.split("@");
      this.#cursors.set(id, cursor);
    }
  }

  get haveEnded(): boolean {
    return this.#cursors.size === 0;
  }

  /** Those that have not ended, with their positions. */
  get names(): readonly string[] {
    return [...this.#cursors].map(([id, cursor]) => (cursor ? `${id}@${cursor}` : id));
  }

  /** Note an event. Return whether it is new: a reconnect can repeat some. */
  take(id: string, event: GenerationEvent): boolean {
    const known = this.#cursors.get(id);
    if (known === undefined) return false;
    if (!ALWAYS.has(event.name) && /^\d/.test(known) && !isAfter(event.cursor, known)) return false;
    this.#cursors.set(id, event.cursor === "0-0" ? "" : event.cursor);
    if (isTerminal(event)) this.#cursors.delete(id);
    return true;
  }
}

/** Whether a cursor is greater. Its numbers can be greater than those that are exact here. */
function isAfter(cursor: string, other: string): boolean {
  const [attempt = "", seq = ""] = cursor.split("-");
  const [otherAttempt = "", otherSeq = ""] = other.split("-");
  return compared(attempt, otherAttempt) > 0 || (attempt === otherAttempt && compared(seq, otherSeq) > 0);
}

const compared = (one: string, other: string): number =>
  one.length - other.length || (one < other ? -1 : one > other ? 1 : 0);

/** The tool calls of one choice: assigns pieces to calls, by the rules of the gateway's merged messages. */

import { Arguments, isNothing } from "./arguments.js";
import { indexOf, isObject, isText, more, type Fields } from "./values.js";

/** A tool call, as far as it is known. */
export interface ToolCall {
  readonly id: string | null;
  readonly name: string;
  /** JSON text, incomplete until the generation has ended; for a custom tool its input. */
  readonly arguments: string;
}

type Id = string | number;

const idOf = ({ id }: Fields): Id | null => ((typeof id === "string" && id) || typeof id === "number" ? id : null);
const typeOf = ({ type }: Fields): string | null => (typeof type === "string" && type ? type : null);
const functionOf = (piece: Fields): Fields => (isObject(piece["function"]) ? piece["function"] : {});

export class ToolCalls {
  readonly #all: Call[] = [];
  readonly #places = new Map<string, Call>(); // index and type → the newest call there
  readonly #ids = new Map<string, Call>(); // index and id, or id → the newest call with it

  get snapshot(): readonly ToolCall[] {
    return this.#all.map((call) => call.snapshot);
  }

  /** `whole`: a part of a complete message, at this position. */
  add(given: Fields, whole: boolean, position: number): void {
    const piece = asCall(given);
    let call = this.#known(piece, whole ? position : this.#all.length - 1);
    if (!call || call.isLeftBy(piece, whole)) {
      call = new Call();
      this.#all.push(call);
    }
    call.add(piece, whole);
    this.#register(call, call.id);
    if (idOf(piece) !== call.id) this.#register(call, idOf(piece));
  }

  #register(call: Call, id: Id | null): void {
    const { index, type } = call;
    if (index !== null) for (const key of [type, null]) this.#places.set(JSON.stringify([index, key]), call);
    if (id !== null) for (const key of [index, null]) this.#ids.set(JSON.stringify([key, id]), call);
  }

  #known(piece: Fields, last: number): Call | undefined {
    const [index, id] = [indexOf(piece), idOf(piece)];
    if (id !== null) {
      const call = this.#ids.get(JSON.stringify([index, id])) ?? this.#ids.get(JSON.stringify([null, id]));
      if (call && (index === null || call.index === null || call.index === index)) return call;
    }
    if (index === null && id === null) return this.#all[last];
    const call = index === null ? this.#all[last] : this.#at(index, typeOf(piece));
    const isItsOwn = index !== null && (id === null || !call || call.id === null);
    return isItsOwn || call?.lacks(piece) ? call : undefined;
  }

  #at(index: number, type: string | null): Call | undefined {
    const call = this.#places.get(JSON.stringify([index, type]));
    if (call || type === null) return call;
    const untyped = this.#places.get(JSON.stringify([index, null]));
    return untyped?.type === null ? untyped : undefined;
  }
}

/** A call with its name and arguments in an object of their own, as in OpenAI's format. */
function asCall(piece: Fields): Fields {
  if (isObject(piece["function"]) || isObject(piece["custom"])) return piece;
  const [kind, said] = piece["type"] === "custom" ? ["custom", "input"] : ["function", "arguments"];
  const body = Object.fromEntries(Object.entries(piece).filter(([key]) => key === "name" || key === said));
  return Object.keys(body).length ? { ...piece, [kind as string]: body } : piece;
}

class Call {
  index: number | null = null;
  type: string | null = null;
  id: Id | null = null;
  #isFunction = false;
  #name = "";
  #input = ""; // of a custom tool
  readonly #arguments = new Arguments();

  get snapshot(): ToolCall {
    const id = this.id === null ? null : String(this.id);
    return { id, name: this.#name, arguments: this.#isFunction ? this.#arguments.text : this.#input };
  }

  add(piece: Fields, whole: boolean): void {
    this.index = indexOf(piece) ?? this.index;
    this.type = typeOf(piece) ?? this.type;
    this.id ??= idOf(piece);
    this.#isFunction ||= isObject(piece["function"]);
    const body = this.#isFunction ? functionOf(piece) : isObject(piece["custom"]) ? piece["custom"] : {};
    const { name, input } = body;
    if (isText(name)) this.#name += more(this.#name, String(name), true);
    if (this.#isFunction) this.#arguments.add(body["arguments"], whole);
    else if (isText(input)) this.#input += more(this.#input, String(input), whole);
  }

  /** Whether the arguments are incomplete and the piece has nothing but arguments. */
  lacks(piece: Fields): boolean {
    const { name, arguments: value } = functionOf(piece);
    const isBare = (name === undefined || name === null || name === "") && typeof value === "string" && value !== "";
    return this.#isFunction && isBare && !this.#arguments.areWhole;
  }

  /** Whether a piece that would continue this call starts another one, judged by its name or its arguments. */
  isLeftBy(piece: Fields, whole: boolean): boolean {
    const { name, arguments: value } = functionOf(piece);
    if (!this.#isFunction || typeof name !== "string" || !name) return false;
    const isAnother = this.#name !== "" && !name.startsWith(this.#name);
    if (!this.#arguments.begun) {
      return isAnother && this.id === null && (Object.hasOwn(piece, "id") || indexOf(piece) === null);
    }
    if (isAnother || whole) return isAnother;
    return this.#arguments.areLeftBy(value) && !this.#isOf(piece, value);
  }

  /** Whether a piece with the name and another object still belongs to this call. */
  #isOf(piece: Fields, value: unknown): boolean {
    const isSame = idOf(piece) !== null && idOf(piece) === this.id;
    const isPlaced = indexOf(piece) !== null;
    const saysNothing = isObject(value) ? !Object.keys(value).length : isNothing(String(value));
    if (this.#arguments.sayNothing && !saysNothing) return isSame || isPlaced;
    const repeats = typeof value === "string" && this.#arguments.areRepeatedBy(value);
    return isSame && (repeats || this.#arguments.agreeWith(value, !isPlaced));
  }
}

/** The content of a message: a string, a list of typed parts, or one such part. */

import { indexOf, isObject, isText, objectsOf, plain } from "./values.js";

export interface Content {
  readonly thoughts: string;
  readonly text: string;
  readonly refusal: string;
}

const TEXT_PARTS: ReadonlySet<unknown> = new Set([null, "text", "output_text"]);
const THOUGHT_PARTS: ReadonlySet<unknown> = new Set([
  "thinking",
  "reasoning",
  "reasoning_text",
  "reasoning.text",
  "reasoning.summary",
]);

/** Sort a content into thoughts, text and refusal. */
export function readContent(content: unknown): Content {
  let [thoughts, text, refusal] = ["", "", ""];
  if (isText(content)) return { thoughts, text: String(content), refusal };
  const isList = Array.isArray(content);
  for (const part of isList ? (content as unknown[]) : [content]) {
    if (isList && typeof part === "string") text += part;
    if (!isObject(part)) continue;
    const type = part["type"] ?? null;
    if (TEXT_PARTS.has(type)) text += plain(part["text"]);
    else if (THOUGHT_PARTS.has(type)) thoughts += plain(part);
    else if (type === "refusal") refusal += plain(part["refusal"]);
  }
  return { thoughts, text, refusal };
}

/** The text that a chunk adds to choice 0. */
export function textOf(chunk: unknown): string {
  const choices = isObject(chunk) ? objectsOf(chunk["choices"]) : [];
  const first = choices.filter((choice, position) => (indexOf(choice) ?? position) === 0);
  const messages = first.map((choice) => (isObject(choice["delta"]) ? choice["delta"] : choice["message"]));
  return messages.map((message) => (isObject(message) ? readContent(message["content"]).text : "")).join("");
}

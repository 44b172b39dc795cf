// A generation as a file: its text, its record, its events.

import { ask, pathOf } from "../data/gateway.js";
import { make } from "../ui/page.js";

/** Kind of a file → its type, and its content. @type {Record<string, {type: string, content: Function}>} */
const KINDS = {
  md: { type: "text/markdown", content: (id, recording) => `${recording.attemptAt().text()}\n` },
  json: { type: "application/json", content: async (id) => JSON.stringify(await whole(id), null, 2) },
  ndjson: { type: "application/x-ndjson", content: (id, recording) => recording.events.map(line).join("") },
};

export const kinds = Object.keys(KINDS);

const whole = (id) => ask(`${pathOf(id)}?include=request`);

/** An event as in a page of `GET /v1/generations/{id}/events`; events that are in no log are left out. */
function line({ id, event, at, data }) {
  return event === "gap" || event === "gone" ? "" : `${JSON.stringify({ id, event, at: at ?? null, data })}\n`;
}

/** Saves a file of that kind. */
export async function save(kind, id, recording) {
  const { type, content } = KINDS[kind];
  const url = URL.createObjectURL(new Blob([await content(id, recording)], { type: `${type};charset=utf-8` }));
  make("a", { href: url, download: `${id}.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // when the browser has read it
}

// The parser of event streams, with streams that are split at every byte.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SseParser, messagesOf } from "../dist/sse.js";

/** The messages of a body that arrives in these pieces. */
async function read(pieces) {
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
  const parser = new SseParser();
  const messages = [];
  for await (const message of messagesOf(body, parser, (reading) => reading)) messages.push(message);
  return { messages, retry: parser.retry, comment: parser.comment };
}

const LINES = [
  ": hello",
  "",
  "id: 1-0",
  "event: started",
  'data: {"attempt": 1}',
  "",
  "id: 1-1",
  "event: chunk",
  "data: \u{1f600} 漢字 é",
  "data:  two",
  "",
  "data",
  "",
  "id: 1-2",
  "",
  "retry: 1500",
  "retry: 12s",
  "id: 1\u00003",
  "event: gap",
  "data: x:y",
  "",
  "",
  "id: 1-4",
  "data: incomplete",
];
const MESSAGES = [
  { event: "started", data: '{"attempt": 1}', id: "1-0" },
  { event: "chunk", data: "\u{1f600} 漢字 é\n two", id: "1-1" },
  { event: "message", data: "", id: "1-1" },
  { event: "message", data: null, id: "1-2" },
  { event: "gap", data: "x:y", id: "1-2" },
];

for (const [name, end] of [
  ["LF", "\n"],
  ["CR", "\r"],
  ["CR LF", "\r\n"],
]) {
  for (const mark of ["", "\ufeff"]) {
    test(`a stream with ${name}${mark && " and a byte order mark"} is read the same, wherever it is split`, async () => {
      const bytes = new TextEncoder().encode(mark + LINES.join(end));
      const expected = { messages: MESSAGES, retry: 1500, comment: "hello" };
      assert.deepEqual(await read([bytes]), expected);
      assert.deepEqual(await read(Array.from(bytes, (_, place) => bytes.subarray(place, place + 1))), expected);
      for (let place = 1; place < bytes.length; place++) {
        assert.deepEqual(await read([bytes.subarray(0, place), bytes.subarray(place)]), expected, `at byte ${place}`);
      }
    });
  }
}

test("an event of many pieces takes time in proportion to its size", () => {
  const parser = new SseParser();
  const piece = "x".repeat(1024);
  assert.deepEqual(parser.push("data: "), []);
  for (let count = 0; count < 8192; count++) assert.deepEqual(parser.push(piece), []);
  const [message] = parser.push("\n\n");
  assert.equal(message.data.length, 8 * 1024 * 1024);
});

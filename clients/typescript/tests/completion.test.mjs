// Merging of chunks, with the cases of the gateway's own tests.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Completion } from "../dist/completion/completion.js";

const FILE = new URL("../../../tests/integration/broker/completion/cases.json", import.meta.url);
const { cases } = JSON.parse(readFileSync(FILE, "utf-8"));

const chunksOf = ({ chunks, deltas }) =>
  chunks ?? deltas.map((delta) => ({ choices: [{ index: 0, delta, finish_reason: null }] }));

function expected(one) {
  const message = { content: null, ...one.message };
  const [first] = one.choices ?? [{ message, finish_reason: one.finish_reason ?? null }];
  const content = first?.message.content;
  const listed = (first?.message.tool_calls ?? []).map((call) => [call.function?.name, call.function?.arguments]);
  return {
    content: one.text ?? (typeof content === "string" ? content : ""),
    reasoning: one.reasoning ?? "",
    refusal: one.refusal ?? "",
    calls: one.calls ?? listed,
    finish: first?.finish_reason ?? null,
  };
}

for (const [name, one] of Object.entries(cases)) {
  test(name, () => {
    const completion = new Completion();
    for (const chunk of chunksOf(one)) completion.add(chunk);
    const found = completion.choices.find(({ index }) => index === 0);
    const shown = {
      content: (found?.content ?? "").toWellFormed(), // as a page shows it
      reasoning: found?.reasoning ?? "",
      refusal: found?.refusal ?? "",
      calls: (found?.toolCalls ?? []).map((call) => [call.name, call.arguments]),
      finish: found?.finishReason ?? null,
    };
    assert.deepEqual(shown, expected(one));
  });
}

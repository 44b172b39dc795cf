"""openai-node: the documentation's snippet, stored completions."""

from __future__ import annotations

import pytest

from tests.acceptance.openai.sdk import README_URL, documented_snippet, node, run_snippet
from tests.support import Gateway
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

pytestmark = pytest.mark.node

SNIPPET = """\
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: "https://ai.gabforge.ai/v1",
  apiKey: process.env.GABFORGE_API_KEY,
});

const stream = await client.chat.completions.create({
  model: "gabforge-coder",
  messages: [{ role: "user", content: "Explain the GIL in CPython." }],
  stream: true,
});

for await (const chunk of stream) {
  const content = chunk.choices[0]?.delta?.content ?? "";
  process.stdout.write(content);
}
console.log();
"""
"""From the upstream's documentation."""

MESSAGES = [{"role": "user", "content": "Explain the GIL in CPython."}]
SEED = seed_of(MESSAGES)


def expected_text(length: int) -> str:
    return "".join(pieces(SEED, length))


def test_the_readme_shows_the_documented_snippet() -> None:
    """With another address and key, otherwise unchanged."""
    shown = documented_snippet("js").replace(f"{README_URL}/v1", "https://ai.gabforge.ai/v1")
    assert shown.replace("TOKENCAST_API_KEY", "GABFORGE_API_KEY") == SNIPPET


async def test_the_documented_snippet_runs(running: Gateway) -> None:
    """It prints the model's text and a line break."""
    assert await run_snippet(running.url, "js", node(), "--input-type=module", "-") == expected_text(60) + "\n"

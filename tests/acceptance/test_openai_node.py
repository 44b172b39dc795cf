"""openai-node: the documentation's snippet, stored completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.acceptance.sdk import README_URL, Json, Sdk, documented, node, run_snippet, sdk_named
from tests.support import Gateway
from worker.upstream_sim.directives import seed_of
from worker.upstream_sim.text import pieces

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
"""As the upstream's documentation has it."""

MESSAGES = [{"role": "user", "content": "Explain the GIL in CPython."}]
SEED = seed_of(MESSAGES)


@pytest.fixture(scope="module")
async def sdk() -> AsyncGenerator[Sdk, None]:
    async with sdk_named("node") as started:
        yield started


def asked(directive: str, **more: Any) -> Json:
    content = f"{MESSAGES[0]['content']} [[sim speed=0 {directive}]]"
    return {"model": "sim", "messages": [{"role": "user", "content": content}], **more}


def said(length: int) -> str:
    return "".join(pieces(SEED, length))


def test_the_readme_shows_the_documented_snippet() -> None:
    """With another address and key, and no other change."""
    shown = documented("js").replace(f"{README_URL}/v1", "https://ai.gabforge.ai/v1")
    assert shown.replace("TOKENCAST_API_KEY", "GABFORGE_API_KEY") == SNIPPET


async def test_the_documented_snippet_runs(running: Gateway) -> None:
    """It prints what the model said, and a line's end."""
    assert await run_snippet(running.url, "js", node(), "--input-type=module", "-") == said(60) + "\n"


async def test_a_stored_completion_is_retrieved(running: Gateway, sdk: Sdk) -> None:
    """By the id that the completion itself bears."""
    created = await sdk.call(running.url, "create", **asked("tools=2 length=5"))
    retrieved = await sdk.call(running.url, "retrieve", completion_id=created.completion["id"])
    assert retrieved.error is None
    assert retrieved.completion == created.completion

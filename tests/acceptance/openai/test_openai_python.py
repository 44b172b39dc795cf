"""openai-python: the documentation's snippet, the accumulating stream, stored completions."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.acceptance.openai.sdk import README_URL, Json, Sdk, documented_snippet, oldest_python, run_snippet, sdk_named
from tests.support import Gateway
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

SNIPPET = """\
import os
from openai import OpenAI

client = OpenAI(
    base_url="https://ai.gabforge.ai/v1",
    api_key=os.environ["GABFORGE_API_KEY"],
)

stream = client.chat.completions.create(
    model="gabforge-coder",
    messages=[{"role": "user", "content": "Explain the GIL in CPython."}],
    stream=True,
)

# Each chunk contains a delta with the new token(s)
for chunk in stream:
    delta = chunk.choices[0].delta
    if delta.content is not None:
        print(delta.content, end="", flush=True)

print()
"""
"""From the upstream's documentation."""

MESSAGES = [{"role": "user", "content": "Explain the GIL in CPython."}]
SEED = seed_of(MESSAGES)


@pytest.fixture(scope="module", params=["newest", "newest async"])
async def sdk(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    async with sdk_named(request.param) as started:
        yield started


def sim_request(directive: str, **more: Any) -> Json:
    content = f"{MESSAGES[0]['content']} [[sim speed=0 {directive}]]"
    return {"model": "sim", "messages": [{"role": "user", "content": content}], **more}


def expected_text(length: int) -> str:
    return "".join(pieces(SEED, length))


def test_the_readme_shows_the_documented_snippet() -> None:
    """With another address and key, otherwise unchanged."""
    shown = documented_snippet("python").replace(f"{README_URL}/v1", "https://ai.gabforge.ai/v1")
    assert shown.replace("TOKENCAST_API_KEY", "GABFORGE_API_KEY") == SNIPPET


@pytest.mark.parametrize("version", ["oldest", "newest"])
async def test_the_documented_snippet_runs(running: Gateway, version: str) -> None:
    """It prints the model's text and a line break."""
    python = str(oldest_python()) if version == "oldest" else sys.executable
    assert await run_snippet(running.url, "python", python, "-W", "error", "-") == expected_text(60) + "\n"


async def test_a_running_completion_is_retrieved_partially(running: Gateway, sdk: Sdk) -> None:
    """Its finish_reason is null until the end."""
    call = sdk.start(running.url, "stream", **sim_request("fault=stall at=3 length=10"))
    for _ in range(4):
        await call.chunk()
    gid = call.result.generation
    partial = await sdk.call(running.url, "retrieve", completion_id=gid)
    assert partial.text() == "".join(pieces(SEED, 10)[:3])
    assert partial.completion["choices"][0]["finish_reason"] is None
    await running.http.post(f"/v1/generations/{gid}/cancel")
    assert (await call.end()).error["code"] == "generation_cancelled"


async def test_an_unknown_completion_is_not_found(running: Gateway, sdk: Sdk) -> None:
    result = await sdk.call(running.url, "retrieve", completion_id="gen_" + "0" * 34)
    assert result.error["class"] == "NotFoundError"
    assert (result.error["code"], result.error["param"]) == ("generation_not_found", "id")

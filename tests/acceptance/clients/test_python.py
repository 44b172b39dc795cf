"""The Python client against real gateways and workers, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import Gateway, gather
from tokencast_client import (
    AsyncClient,
    Client,
    Generation,
)

PROMPT: list[dict[str, Any]] = [{"role": "user", "content": "Explain the GIL in CPython."}]


async def in_thread(work: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(work, *arguments, **options)


async def test_a_completion_in_a_few_lines(running: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a service that has only TOKENCAST_URL and a key."""
    monkeypatch.setenv("TOKENCAST_URL", running.url)
    monkeypatch.setenv("TOKENCAST_API_KEY", "key")

    def sync() -> tuple[Generation, str, list[str]]:
        with Client() as client:
            generation = client.enqueue(model="sim", messages=PROMPT, metadata={"batch": "b1"}, temperature=0.2)
            pieces = [event.text for event in client.follow(generation.id)]
            ended = client.wait(generation.id, timeout=60)
            [listed] = client.list(status=["completed"], metadata={"batch": "b1"})
            assert listed.id == generation.id
            assert client.get(generation.id, include_request=True).request["temperature"] == 0.2  # type: ignore[index]
            *_, last = client.stream_text(generation.id)
            return ended, "".join(pieces), [last, client.text(generation.id)]

    async def not_blocking() -> tuple[Generation, str, list[str]]:
        async with AsyncClient() as client:
            generation = await client.enqueue(model="sim", messages=PROMPT, metadata={"batch": "b2"}, priority=1)
            pieces = [event.text async for event in client.follow(generation.id)]
            ended = await client.wait(generation.id, timeout=60)
            [listed] = [one async for one in client.list(status="completed", metadata={"batch": "b2"})]
            assert (listed.id, listed.priority) == (generation.id, 1)
            texts = [text async for text in client.stream_text(generation.id)]
            return ended, "".join(pieces), [texts[-1], await client.text(generation.id)]

    for ended, text, again in await gather(in_thread(sync), not_blocking()):
        assert (ended.status, ended.ended) == ("completed", True)
        assert text == ended.text
        assert again == [text, text]
        assert ended.raw["object"] == "generation"

"""Reads of generations whose logs contain content parts and malformed JSON."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from broker import Broker
from tests.acceptance.cli.test_cli import tokencast
from tests.integration.broker.completion.cases import CASES, Json, choices_of, chunks_of, text_of_case
from tests.integration.broker.completion.mutations import mutated
from tests.support import Gateway, Writer, gather

PARTS = CASES["parts, then text"]


async def started(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def append(writer: Writer, chunks: list[Any]) -> None:
    await writer.append_raw(*(json.dumps(chunk).encode() for chunk in chunks))


async def answer(api: Gateway, gid: str) -> Json:
    response = await api.http.get(f"/v1/chat/completions/{gid}")
    assert response.status_code == 200, response.text
    return response.json()


async def test_content_parts_are_read_during_and_after_the_generation(api: Gateway, broker: Broker) -> None:
    """In every format, thoughts are separate from the text and come before it."""
    writer = await started(api, broker)
    chunks = chunks_of(PARTS)
    await append(writer, chunks[:2])
    running = await api.get(writer.gid)
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Clouds, "}]}
    assert running["choices"][0]["message"]["content"] == [thought]
    assert running["text"] == ""
    assert (await answer(api, writer.gid))["choices"][0]["message"]["content"] == [thought]
    await append(writer, chunks[2:])
    cancelled = (await api.http.post(f"/v1/generations/{writer.gid}/cancel")).json()
    for generation in (cancelled, await api.get(writer.gid), await api.get(writer.gid)):
        assert generation["status"] == "cancelled"
        assert generation["text"] == text_of_case(PARTS)
        assert generation["choices"] == choices_of(PARTS)


async def test_the_command_line_follows_content_parts(api: Gateway, broker: Broker) -> None:
    writer = await started(api, broker)
    await append(writer, chunks_of(PARTS))
    await writer.finish()
    followed, shown = await gather(
        tokencast("follow", writer.gid, url=api.url), tokencast("follow", writer.gid, "--json", url=api.url)
    )
    assert (followed.code, followed.out, followed.err) == (0, "Rain soon.\n", "")
    assert "Clouds, " in shown.out


async def test_every_case_is_read_from_a_log(api: Gateway, broker: Broker) -> None:
    """Through Redis and the gateway: the running generation's snapshot and its chat response."""

    async def read(case: Json) -> tuple[Json, Json]:
        writer = await started(api, broker)
        await append(writer, chunks_of(case))
        snapshot, chat = await api.get(writer.gid), await answer(api, writer.gid)
        await writer.finish()
        return snapshot, chat

    for name, (snapshot, chat) in zip(CASES, await gather(*map(read, CASES.values())), strict=True):
        assert snapshot["choices"] == choices_of(CASES[name]), name
        assert snapshot["text"] == text_of_case(CASES[name]), name
        assert len(chat["choices"]) == len(snapshot["choices"]), name


@pytest.mark.parametrize("seed", range(8))
async def test_every_log_is_readable(api: Gateway, broker: Broker, seed: int) -> None:
    """Including damaged logs and logs of older workers: every read succeeds, before and after the ending."""
    chooser = random.Random(seed)
    writer = await started(api, broker)
    garbage = [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 3000 + b"]" * 3000,
        b'{"choices":[{"delta":{"x":1e999}}]}',
    ]
    for _ in range(6):
        await append(writer, mutated(chooser) or [{}])
        await writer.append_raw(chooser.choice(garbage))
        assert (await api.get(writer.gid))["status"] == "in_progress"
        await answer(api, writer.gid)
    assert (await api.http.post(f"/v1/generations/{writer.gid}/cancel")).status_code == 200
    cancelled = await api.get(writer.gid)
    assert cancelled["status"] == "cancelled"
    assert isinstance(cancelled["text"], str)

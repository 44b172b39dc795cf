"""The progress line that a terminal shows until the first text arrives. It is not written to pipes."""

from __future__ import annotations

import json
import time

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.cli.terminal import TOKENCAST, terminal
from tests.support import Gateway, Writer, gateway, tell_waiting


async def test_a_terminal_shows_the_state_of_a_waiting_generation(own_redis: EmbeddedRedis) -> None:
    """The line is erased when the text arrives."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        first, second, gid = [(await api.create())["id"] for _ in range(3)]
        async with terminal(*TOKENCAST, "follow", gid, url=api.url) as shown:
            await shown.shows(", 2 before it")
            await broker.cancel(first)
            await shown.shows(", 1 before it")
            writer = await Writer(broker.store.redis, gid).claim()
            await shown.shows("waiting for the first token, ")
            await writer.append("Hello")
            await shown.shows(lambda: shown.lines[:2] == ["Hello", ""])
            await writer.append(" again\nand again")
            await writer.finish()
            assert await shown.end() == 0
            assert [line for line in shown.lines if line] == ["Hello again", "and again"]
        assert (await api.get(second))["status"] == "queued"


async def test_a_busy_upstream_is_shown_with_the_time_of_the_next_try(api: Gateway, broker: Broker) -> None:
    gid = (await api.create())["id"]
    await tell_waiting(broker.store.redis, gid, "upstream_busy", time.time() + 50)
    async with terminal(*TOKENCAST, "follow", gid, url=api.url) as shown:
        await shown.shows("next request to the upstream in ")
        assert shown.lines[0] == "tokencast: waiting for the upstream (upstream_busy)"
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.append("Hello")
        await shown.shows(lambda: shown.lines[1:3] == ["Hello", ""])
        await writer.finish()
        assert await shown.end() == 0


async def test_json_on_a_terminal_has_no_progress_line(api: Gateway, broker: Broker) -> None:
    gid = (await api.create())["id"]
    async with terminal(*TOKENCAST, "follow", gid, "--json", url=api.url, columns=200) as shown:
        await shown.shows(" before it")
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.finish()
        assert await shown.end() == 0
        assert [json.loads(line)["event"] for line in shown.lines if line] == ["created", "started", "completed"]

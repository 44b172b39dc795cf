"""The progress line that a terminal shows until the first text arrives. It is not written to pipes."""

from __future__ import annotations

import json
import re
import time

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.cli.terminal import TOKENCAST, terminal
from tests.support import Gateway, Writer, gateway, request_body


async def test_a_terminal_shows_the_state_of_a_waiting_generation(own_redis: EmbeddedRedis) -> None:
    """The line is erased when the text arrives."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        first, second, gid = [(await api.create())["id"] for _ in range(3)]
        async with terminal(*TOKENCAST, "follow", gid, url=api.url) as shown:
            await shown.shows("all workers are busy, position 3")
            await broker.cancel(first)
            await shown.shows("all workers are busy, position 2")
            writer = await Writer(broker.store.redis, gid).claim()
            await shown.shows("waiting for the first token, ")
            await writer.append("Hello")
            await shown.shows(lambda: shown.lines[:2] == ["Hello", ""])
            await writer.append(" again\nand again")
            await writer.finish()
            assert await shown.end() == 0
            assert [line for line in shown.lines if line] == ["Hello again", "and again"]
        assert (await api.get(second))["status"] == "queued"


async def test_a_terminal_shows_why_a_generation_waits(own_redis: EmbeddedRedis) -> None:
    """The reason is that of the newest `waiting` event, or of the generation itself."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        gid = (await api.create())["id"]
        later = (await api.create(request_body(tokencast={"delay_seconds": 7200})))["id"]
        async with (
            terminal(*TOKENCAST, "follow", gid, url=api.url) as shown,
            terminal(*TOKENCAST, "follow", later, url=api.url) as scheduled,
        ):
            await shown.shows("all workers are busy, position 1")
            await scheduled.shows("scheduled for later, starts in ")
            await api.http.post("/v1/queue/pause", json={})
            await shown.shows("tokencast: waiting: the queue is paused (paused)")
            await shown.shows(lambda: re.search("tokencast: queued .*: the queue is paused", "\n".join(shown.lines)))
            await api.http.post("/v1/queue/resume", json={})
            await shown.shows("tokencast: waiting: all workers are busy (queued)")
            for one in (gid, later):
                await broker.cancel(one)
            assert (await shown.end(), await scheduled.end()) == (3, 3)


async def test_a_busy_upstream_is_shown_with_the_time_of_the_next_try(api: Gateway, broker: Broker) -> None:
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    waiting = {"reason": "upstream_busy", "retry_at": time.time() + 50}
    await writer.append_raw(json.dumps(waiting).encode(), kind="w")
    async with terminal(*TOKENCAST, "follow", writer.gid, url=api.url) as shown:
        await shown.shows("waiting: the upstream is busy, next try in ")
        assert shown.lines[0] == "tokencast: waiting: the upstream is busy (upstream_busy)"
        await writer.append("Hello")
        await shown.shows(lambda: shown.lines[1:3] == ["Hello", ""])
        await writer.finish()
        assert await shown.end() == 0


async def test_json_on_a_terminal_has_no_progress_line(api: Gateway, broker: Broker) -> None:
    gid = (await api.create())["id"]
    async with terminal(*TOKENCAST, "follow", gid, "--json", url=api.url, columns=200) as shown:
        await shown.shows("all workers are busy")
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.finish()
        assert await shown.end() == 0
        assert [json.loads(line)["event"] for line in shown.lines if line] == ["created", "started", "completed"]

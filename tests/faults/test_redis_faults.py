"""Redis dies and comes back, with its data and without; connections to it break, stall, and lose commands and
replies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.scene import QUICK, Audience, Stored, ask, audience, is_overdue, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.faults.tripwire import Tripwire, When, script, tripwire
from tests.support import Gateway, gateway, gather, upstream_calls, wait_until, worker

ONCE = Stored("completed", attempts=1, budget=0, calls=1)


@asynccontextmanager
async def crowds(
    api: Gateway, labels: list[str], *, native: int, completions: int, **asked: int
) -> AsyncGenerator[list[Audience], None]:
    """Running generations, each with subscribers that have received some of its text. At the end they must have all of
    it."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(client())
        people: list[Audience] = []
        for said in await gather(*(ask(api, label, seed=seed, **asked) for seed, label in enumerate(labels))):
            crowd = audience(http, lambda: api.url, said, native=native, completions=completions)
            people.append(await stack.enter_async_context(crowd))
        for crowd in people:
            await crowd.has_text()
        yield people
        for crowd in people:
            assert await crowd.ending() == "completed"
            assert crowd.resets == 0
            assert (await api.get(crowd.said.gid))["text"] == crowd.said.text


@pytest.mark.parametrize("keeps", [True, False], ids=["with-data", "empty"])
async def test_redis_is_killed_and_comes_back(sim: str, keeps: bool) -> None:
    """Subscribers of running generations see a pause, without a reset or a second upstream call; so do those of
    generations that have just ended. Waiting generations come back only if Redis keeps its file."""
    labels = [f"running-{keeps}-{n}" for n in range(6)]
    async with (
        EmbeddedRedis(appendonly=keeps) as redis,
        gateway(redis.url, **QUICK) as api,
        worker(redis.url, sim, **QUICK, TOKENCAST_SLOTS="6"),
    ):
        ended = await ask(api, f"ended-{keeps}", length=5)
        await api.ended(ended.gid)
        async with crowds(api, labels, native=10, completions=10, length=120, speed=30) as people:
            waiting = await ask(api, f"waiting-{keeps}", length=5)
            redis.kill()
            await redis.restart()
        for crowd, label in zip(people, labels, strict=True):
            assert await stored(redis.url, sim, crowd.said, label) == ONCE
        async with client() as http, audience(http, lambda: api.url, ended) as late:
            assert await late.ending() == "completed"
        async with client() as http, audience(http, lambda: api.url, waiting) as late:
            assert await late.ending() == ("completed" if keeps else "gone")
        assert len(await upstream_calls(sim, f"waiting-{keeps}")) == (1 if keeps else 0)
        await queue_is_empty(redis.url)


async def test_connections_break_repeatedly(own_redis: EmbeddedRedis, sim: str) -> None:
    labels = [f"cut-{n}" for n in range(20)]
    async with (
        tripwire(own_redis.url) as before_worker,
        tripwire(own_redis.url) as before_gateway,
        gateway(before_gateway.url) as api,
        worker(before_worker.url, sim) as process,
    ):
        async with crowds(api, labels, native=1, completions=1, length=100, speed=30) as people:
            for _ in range(6):
                for wire in (before_worker, before_gateway):
                    await asyncio.sleep(random.uniform(0.1, 0.3))
                    wire.cut()
        assert "events wait" in process.output
        for crowd, label in zip(people, labels, strict=True):
            assert await stored(own_redis.url, sim, crowd.said, label) == ONCE


async def test_redis_with_a_high_latency(own_redis: EmbeddedRedis, sim: str) -> None:
    """Every reply is delayed by 50 to 200 ms, at random."""
    labels = [f"far-{n}" for n in range(5)]
    async with (
        tripwire(own_redis.url) as before_worker,
        tripwire(own_redis.url) as before_gateway,
        gateway(before_gateway.url) as api,
        worker(before_worker.url, sim),
    ):
        before_worker.latency = before_gateway.latency = (0.05, 0.2)
        async with crowds(api, labels, native=3, completions=2, length=100, speed=50) as people:
            pass
        for crowd, label in zip(people, labels, strict=True):
            assert await stored(own_redis.url, sim, crowd.said, label) == ONCE


# --- a lost command or reply --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def before_gateway(redis: EmbeddedRedis) -> AsyncGenerator[Tripwire, None]:
    async with tripwire(redis.url) as wire:
        yield wire


@pytest.fixture(scope="module")
async def quick(before_gateway: Tripwire) -> AsyncGenerator[Gateway, None]:
    async with gateway(before_gateway.url, **QUICK) as started:
        yield started


@pytest.fixture(scope="module")
async def before_worker(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Tripwire, None]:
    async with tripwire(redis.url) as wire, worker(wire.url, sim, **QUICK):
        yield wire


AT_THE_GATEWAY = ("create", "offer")
LOST = {
    ("create", "before"): ONCE,
    ("create", "after"): ONCE,
    ("offer", "before"): ONCE,
    ("offer", "after"): ONCE,
    ("pull", "before"): ONCE,
    ("pull", "after"): ONCE,
    ("claim", "before"): ONCE,
    ("claim", "after"): ONCE,
    ("begin", "before"): ONCE,
    ("begin", "after"): ONCE,
    ("begun", "before"): ONCE,
    ("begun", "after"): ONCE,
    ("append", "before"): ONCE,
    ("append", "after"): ONCE,
    ("touch", "before"): ONCE,
    ("touch", "after"): ONCE,
    ("finish", "before"): ONCE,
    ("finish", "after"): ONCE,
    ("done", "before"): ONCE,
    ("done", "after"): ONCE,
}


@pytest.mark.parametrize(("name", "when"), LOST.keys())
async def test_a_command_or_its_reply_is_lost(
    redis: EmbeddedRedis, sim: str, quick: Gateway, before_gateway: Tripwire, before_worker: Tripwire,
    name: str, when: When,
) -> None:  # fmt: skip
    wire = before_gateway if name in AT_THE_GATEWAY else before_worker
    trap = wire.trap(script(name), when, nth=2 if name == "append" else 1)
    label = f"lost-{name}-{when}"
    said = await ask(quick, label, length=50)
    await is_overdue(redis.url, said.gid)
    async with client() as http, audience(http, lambda: quick.url, said) as people:
        assert await people.ending() == "completed"
    await wait_until(trap.sprung.is_set)  # the place is freed after the end
    assert await stored(redis.url, sim, said, label) == LOST[name, when]
    assert (await quick.get(said.gid))["text"] == said.text
    await queue_is_empty(redis.url)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("before_worker")
async def test_a_cancel_or_its_reply_is_lost(quick: Gateway, before_gateway: Tripwire, sim: str, when: When) -> None:
    """The caller is told that the cancellation may have failed, and repeats it; there is one ending."""
    label = f"lost-cancel-{when}"
    said = await ask(quick, label, length=3, more="fault=stall at=3")
    async with client() as http, audience(http, lambda: quick.url, said) as people:
        await people.has_text()
        before_gateway.trap(script("cancel"), when)
        answers = [await quick.http.post(f"/v1/generations/{said.gid}/cancel") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [503, 200]
        assert await people.ending() == "cancelled"

    async def upstream_disconnected() -> bool:
        return [call["outcome"] for call in await upstream_calls(sim, label)] == ["disconnected"]

    await wait_until(upstream_disconnected)

"""A worker that stands still for longer than its lease, and then goes on as if nothing had been."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from typing import Any

from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.scene import QUICK, Audience, Stored, ask, audience, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.support import Gateway, gateway, upstream_calls, wait_until, worker

# The first attempt's upstream goes on for two seconds after the worker was stopped, and then waits to be let go.
LONG = {"length": 250, "speed": 100, "more": "fault=stall at=200 times=1"}


async def outcomes(upstream: str, label: str) -> list[str | None]:
    return [call["outcome"] for call in await upstream_calls(upstream, label)]


async def watched(stack: AsyncExitStack, api: Gateway, labels: list[str], **asked: Any) -> list[Audience]:
    """Generations that run, each with an audience that has seen some of it."""
    http = await stack.enter_async_context(client())
    people: list[Audience] = []
    for seed, label in enumerate(labels):
        said = await ask(api, label, seed=seed, **asked)
        people.append(await stack.enter_async_context(audience(http, lambda: api.url, said)))
    for one in people:
        await one.has_text()
    return people


async def test_it_cannot_write_when_it_goes_on(own_redis: EmbeddedRedis, sim: str) -> None:
    """Its two generations have been started anew elsewhere: not one byte of it is stored, and it lets its calls go."""
    labels = ["zombie-a", "zombie-b"]
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url, **QUICK))
        zombie = await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        crowds = await watched(stack, api, labels, **LONG)
        zombie.send(signal.SIGSTOP)
        await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        for crowd in crowds:
            await crowd.begins_anew()
        zombie.send(signal.SIGCONT)
        for crowd, label in zip(crowds, labels, strict=True):
            await zombie.says(rf"{crowd.said.gid}: ended elsewhere \(FENCED\)")
            await wait_until(lambda label=label: has_left(sim, label))
            assert await crowd.ending() == "completed"
            assert crowd.resets == 1
            assert await stored(own_redis.url, sim, crowd.said, label) == Stored("completed", 2, budget=1, calls=2)
            assert await outcomes(sim, label) == ["disconnected", "completed"]
            assert (await api.get(crowd.said.gid))["text"] == crowd.said.text
        await queue_is_empty(own_redis.url)


async def has_left(upstream: str, label: str) -> bool:
    return (await outcomes(upstream, label))[0] == "disconnected"


async def test_its_end_takes_nothing_from_the_next_attempt(own_redis: EmbeddedRedis, sim: str) -> None:
    """The second worker is killed after the first one has gone on, and given up: the generation is still found."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url, **QUICK))
        zombie = await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        (crowd,) = await watched(stack, api, ["orphan"], **LONG)
        zombie.send(signal.SIGSTOP)
        second = await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        await crowd.begins_anew()
        zombie.send(signal.SIGCONT)
        await zombie.says(rf"{crowd.said.gid}: ended elsewhere \(FENCED\)")
        second.send(signal.SIGKILL)
        assert await crowd.ending() == "completed"
        assert crowd.resets == 2
        assert await stored(own_redis.url, sim, crowd.said, "orphan") == Stored("completed", 3, budget=2, calls=3)
        await queue_is_empty(own_redis.url)


async def test_it_may_stand_still_within_its_lease(own_redis: EmbeddedRedis, sim: str) -> None:
    """The upstream goes on meanwhile; its text comes late, and that is all."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url))
        paused = await stack.enter_async_context(worker(own_redis.url, sim))
        (crowd,) = await watched(stack, api, ["paused"], length=250)
        await stack.enter_async_context(worker(own_redis.url, sim))
        paused.send(signal.SIGSTOP)

        async def all_said() -> bool:
            return await outcomes(sim, "paused") == ["completed"]

        await wait_until(all_said)
        assert all(len(one.shown.text) < len(crowd.said.text) for one in crowd.native)
        paused.send(signal.SIGCONT)
        assert await crowd.ending() == "completed"
        assert crowd.resets == 0
        assert await stored(own_redis.url, sim, crowd.said, "paused") == Stored("completed", 1, budget=0, calls=1)

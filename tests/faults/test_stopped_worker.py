"""A worker that is paused for longer than its lease and then continues (a ghost)."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from typing import Any

from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.scene import QUICK, Audience, Stored, ask, audience, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.support import Gateway, gateway, upstream_calls, wait_until, worker

# The first attempt's upstream continues for two seconds after the worker was paused, and then stalls until it is
# disconnected.
LONG = {"length": 250, "speed": 100, "more": "fault=stall at=200 times=1"}


async def outcomes(upstream: str, label: str) -> list[str | None]:
    return [call["outcome"] for call in await upstream_calls(upstream, label)]


async def start_audiences(stack: AsyncExitStack, api: Gateway, labels: list[str], **asked: Any) -> list[Audience]:
    """Running generations, each with an audience that has received some of the text."""
    http = await stack.enter_async_context(client())
    people: list[Audience] = []
    for seed, label in enumerate(labels):
        said = await ask(api, label, seed=seed, **asked)
        people.append(await stack.enter_async_context(audience(http, lambda: api.url, said)))
    for one in people:
        await one.has_text()
    return people


async def test_a_resumed_worker_cannot_write(own_redis: EmbeddedRedis, sim: str) -> None:
    """Its two generations have been restarted by another worker. None of its writes is stored, and it closes its
    upstream calls."""
    labels = ["ghost-a", "ghost-b"]
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url, **QUICK))
        ghost = await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        crowds = await start_audiences(stack, api, labels, **LONG)
        ghost.send(signal.SIGSTOP)
        await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        for crowd in crowds:
            await crowd.has_restarted()
        ghost.send(signal.SIGCONT)
        for crowd, label in zip(crowds, labels, strict=True):
            await ghost.says(rf"{crowd.said.gid}: ended elsewhere \(FENCED\)")
            await wait_until(lambda label=label: is_disconnected(sim, label))
            assert await crowd.ending() == "completed"
            assert crowd.resets == 1
            assert await stored(own_redis.url, sim, crowd.said, label) == Stored("completed", 2, budget=1, calls=2)
            assert await outcomes(sim, label) == ["disconnected", "completed"]
            assert (await api.get(crowd.said.gid))["text"] == crowd.said.text
        await queue_is_empty(own_redis.url)


async def is_disconnected(upstream: str, label: str) -> bool:
    return (await outcomes(upstream, label))[0] == "disconnected"


async def test_the_end_of_a_resumed_worker_leaves_the_next_attempt_intact(own_redis: EmbeddedRedis, sim: str) -> None:
    """The second worker is killed after the first one has continued and given up: the generation is still found."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url, **QUICK))
        ghost = await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        (crowd,) = await start_audiences(stack, api, ["orphan"], **LONG)
        ghost.send(signal.SIGSTOP)
        second = await stack.enter_async_context(worker(own_redis.url, sim, **QUICK))
        await crowd.has_restarted()
        ghost.send(signal.SIGCONT)
        await ghost.says(rf"{crowd.said.gid}: ended elsewhere \(FENCED\)")
        second.send(signal.SIGKILL)
        assert await crowd.ending() == "completed"
        assert crowd.resets == 2
        assert await stored(own_redis.url, sim, crowd.said, "orphan") == Stored("completed", 3, budget=2, calls=3)
        await queue_is_empty(own_redis.url)


async def test_a_pause_shorter_than_the_lease_is_only_a_delay(own_redis: EmbeddedRedis, sim: str) -> None:
    """The upstream continues meanwhile; the text is only delayed."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(gateway(own_redis.url))
        paused = await stack.enter_async_context(worker(own_redis.url, sim))
        (crowd,) = await start_audiences(stack, api, ["paused"], length=250)
        await stack.enter_async_context(worker(own_redis.url, sim))
        paused.send(signal.SIGSTOP)

        async def upstream_has_completed() -> bool:
            return await outcomes(sim, "paused") == ["completed"]

        await wait_until(upstream_has_completed)
        assert all(len(one.shown.text) < len(crowd.said.text) for one in crowd.native)
        paused.send(signal.SIGCONT)
        assert await crowd.ending() == "completed"
        assert crowd.resets == 0
        assert await stored(own_redis.url, sim, crowd.said, "paused") == Stored("completed", 1, budget=0, calls=1)

"""The places that a worker renews, on a real Redis."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from broker import Broker
from broker.queue import commands
from broker.queue.commands import HOLD, UpstreamLimits
from broker.queue.quotas import TenantLimits
from broker.redis.client import Redis, Script
from broker.store import keys
from tests.integration.broker.queue.waiting import granted, pull, put, ticket
from worker.places import Places

ANNA = "anna"
ONE = [UpstreamLimits("default", concurrency=1, adaptive=False)]


class LateRenewals:
    """A client whose renewals are on their way until the test lets them arrive."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.sent, self.arrive = asyncio.Event(), asyncio.Event()

    async def run(self, script: Script, *arguments: Any) -> Any:
        if script is HOLD:
            self.sent.set()
            await self.arrive.wait()
        return await self._redis.run(script, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


async def renewing(queue: Redis) -> tuple[LateRenewals, Places, str, asyncio.Task[None]]:
    """A worker that has a place for a generation, and whose renewal is on its way."""
    late = LateRenewals(queue)
    places = Places(cast(Redis, late), TenantLimits(), "w1")
    [gid] = await put(queue, ANNA)
    places.born = str((await pull(queue, upstreams=ONE)).born)
    places.add(gid, ANNA, "default", 0)
    renewal = asyncio.create_task(places.hold())
    await late.sent.wait()
    return late, places, gid, renewal


async def test_a_late_renewal_takes_no_place_of_another_worker(queue: Redis) -> None:
    """The call ended, its generation went back, and another worker has called for it since."""
    late, places, gid, renewal = await renewing(queue)

    async def hand_over() -> None:
        await places.end(gid, "none")
        await commands.offer(queue, ticket(gid, ANNA, number=2))
        assert await granted(queue, upstreams=ONE) == [gid]

    other = asyncio.create_task(hand_over())
    await asyncio.wait({other}, timeout=0.2)  # the end waits for the renewal, or is over
    late.arrive.set()
    await asyncio.gather(renewal, other)
    await places.wait_ended()
    assert await commands.has_place(queue, gid, "default")
    assert await queue.execute("SCARD", keys.accepted("default")) == 0


async def test_a_renewal_that_fails_delays_no_end(queue: Redis) -> None:
    _, places, gid, renewal = await renewing(queue)
    renewal.cancel()
    await asyncio.gather(renewal, return_exceptions=True)
    assert await places.end(gid, "none") is not None
    assert not await commands.has_place(queue, gid, "default")

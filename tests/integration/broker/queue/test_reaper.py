"""The reaper with real owners: it takes generations without a valid lease, and no others."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.queue.reaper import Reaper
from broker.queue.tickets import Queue
from broker.redis.client import connect_redis
from broker.settings.settings import Settings
from broker.store import keys
from tests.servers.redis_proxy import redis_proxy
from tests.support import in_background, request_body, wait_until
from worker.appender import Appender
from worker.claims import Claim, claim


def settings(url: str, **more: Any) -> Settings:
    return Settings(REDIS_URL=url, **more)  # pyright: ignore[reportCallIssue]


@asynccontextmanager
async def reaping(url: str, **more: Any) -> AsyncGenerator[Reaper, None]:
    own = settings(url, **more)
    async with connect_redis(url, socket_timeout=1.0) as redis:
        reaper = Reaper(redis, Queue(redis, own.retention), own)
        async with in_background(reaper.run()):
            yield reaper


async def claimed(broker: Broker, lease: float) -> Claim:
    generation = await broker.enqueue(request_body())
    await broker.queue.withdraw(generation.id, "default", 1)
    outcome = await claim(broker.store.redis, generation.id, settings(broker.store.redis.url, lease=lease))
    assert isinstance(outcome, Claim)
    return outcome


async def status(broker: Broker, gid: str) -> str:
    return (await broker.store.state(gid, "default")).status


async def test_an_outage_longer_than_the_lease_restarts_nothing() -> None:
    """All leases expire while they cannot be renewed. Afterwards the owners get the time to reconnect."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker, redis_proxy(redis.url) as proxy:
        appender = Appender(settings(proxy.url, lease=1))
        async with in_background(appender.run()), reaping(proxy.url, lease=1):
            await appender.ready()
            attempt = appender.open(await claimed(broker, 1))
            await proxy.close()

            async def lease_end() -> float:
                return int(await broker.store.redis.execute("HGET", keys.meta(attempt.claim.gid), "le")) / 1000

            async def lease_expired_long_ago() -> bool:
                return await lease_end() < time.time() - 1

            await wait_until(lease_expired_long_ago)
            await proxy.open()

            async def held_for_two_leases() -> bool:
                assert await status(broker, attempt.claim.gid) == "in_progress"
                return await lease_end() > opened + 2

            opened = time.time()
            await wait_until(held_for_two_leases)
            assert attempt.ended is None


async def test_a_generation_that_cannot_be_reaped_does_not_stop_the_others() -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        execute = broker.store.redis.execute
        broken, other = [await claimed(broker, 0.5) for _ in range(2)]
        await execute("DEL", keys.meta(broken.gid))
        await execute("SET", keys.meta(broken.gid), "not a hash", "EX", 600)
        async with reaping(redis.url, lease=0.5):

            async def queued() -> bool:
                return await status(broker, other.gid) == "queued" and await broker.queue.depth() == 1

            await wait_until(queued)


async def test_a_reaper_continues_after_redis_restarts() -> None:
    async with EmbeddedRedis(appendonly=True) as redis, connect(redis.url) as broker, reaping(redis.url, lease=0.5):
        redis.kill()
        await redis.restart()
        generation = await claimed(broker, 0.5)

        async def queued() -> bool:
            return await status(broker, generation.gid) == "queued"

        await wait_until(queued)

"""The reaper with real owners: it takes generations without a valid lease, and no others."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import shard_of
from broker.queue.reaper import Reaper
from broker.queue.tickets import Queue
from broker.redis.client import connect_redis
from broker.settings.settings import Settings
from broker.store import commands, keys
from tests.servers.redis_proxy import redis_proxy
from tests.support import REAPER_OBSERVATION, begun, in_background, request_body, ticket_of, wait_until
from worker.appender import Appender
from worker.claims import Claim, claim


def settings(url: str, **more: Any) -> Settings:
    return Settings(REDIS_URL=url, **more)  # pyright: ignore[reportCallIssue]


@asynccontextmanager
async def reaping(url: str, **more: Any) -> AsyncGenerator[Reaper, None]:
    own = settings(url, **more)
    async with connect_redis(url, socket_timeout=1.0) as redis:
        reaper = Reaper(redis, Queue(redis), own)
        async with in_background(reaper.run()):
            yield reaper


async def claimed(broker: Broker, lease: float) -> Claim:
    generation = await broker.enqueue(request_body())
    redis = broker.store.redis
    await broker.queue.withdraw(await ticket_of(redis, generation.id))
    outcome = await claim(redis, generation.id, settings(redis.url, lease=lease), "default")
    assert isinstance(outcome, Claim)
    return await begun(redis, outcome)


async def status(broker: Broker, gid: str) -> str:
    return (await broker.store.state(gid, "default")).status


async def test_an_outage_longer_than_the_lease_restarts_nothing() -> None:
    """All leases expire while they cannot be renewed. Afterwards the owners get the time to reconnect."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker, redis_proxy(redis.url) as proxy:
        appender = Appender(settings(proxy.url, lease=1))
        async with in_background(appender.run()), reaping(proxy.url, lease=1):
            await appender.ready()
            attempt = appender.open(await claimed(broker, 1))
            attempt.begun = True
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


# --- waiting generations ---


async def test_lost_tickets_are_offered_again_many_at_once() -> None:
    """Not one by one: a worker's death is noticed by the same sweep, behind a flood of new generations as well."""
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        execute = broker.store.redis.execute
        lost = [(await broker.enqueue(request_body())).id for _ in range(150)]
        for gid in lost:
            await broker.queue.withdraw(await ticket_of(broker.store.redis, gid))
        async with reaping(redis.url, lease=0.5) as reaper:
            [continuity] = reaper.continuity.values()
            await wait_until(lambda: continuity.duration() > 1)
            dead = await claimed(broker, 0.5)
            await execute("CONFIG", "RESETSTAT")
            await broker.store.redis.pipeline([("ZADD", keys.live(shard_of(gid)), 1, gid) for gid in lost])

            async def queued() -> bool:
                return await broker.queue.depth() == len(lost) + 1

            await wait_until(queued)
        assert await status(broker, dead.gid) == "queued"
        assert all([await due_in(broker, gid) > 500 for gid in lost])
        stats = (await broker.store.redis.info("commandstats", broker.store.redis.topology.groups[0])).decode()
        renewals = re.search(r"cmdstat_pexpireat:calls=(\d+)", stats)  # reap.lua makes some for each generation
        assert renewals is not None
        assert int(renewals[1]) < len(lost)


async def reap(broker: Broker, gid: str) -> commands.ReapReply:
    """Reap a generation that is due."""
    await broker.store.redis.execute("ZADD", keys.live(shard_of(gid)), 1, gid)
    lease_ms, observed_ms, latest_ms = REAPER_OBSERVATION
    return await commands.reap(
        broker.store.redis, gid, max_attempts=3, lease_ms=lease_ms, observed_ms=observed_ms, latest_ms=latest_ms
    )


async def due_in(broker: Broker, gid: str) -> float:
    """The seconds until a reaper looks at a generation."""
    at = await broker.store.redis.execute("ZSCORE", keys.live(shard_of(gid)), gid)
    return float(at) / 1000 - time.time()


@pytest.mark.parametrize(("timeout", "seconds"), [(86_400, 600), (30, 30)], ids=["10 minutes", "deadline"])
async def test_a_reaper_looks_at_a_waiting_generation_rarely(broker: Broker, timeout: float, seconds: float) -> None:
    """At its deadline, at the latest in ten minutes: with a hundred thousand that wait, each look costs."""
    created = await broker.enqueue(request_body(tokencast={"queue_timeout": timeout}))
    assert await due_in(broker, created.id) <= 5  # its ticket may not have been written
    assert (await reap(broker, created.id)).outcome == b"REQUEUE"
    assert seconds - 20 < await due_in(broker, created.id) <= seconds + 1


async def test_a_claim_that_has_not_begun_is_queued_again_when_its_worker_is_lost(broker: Broker) -> None:
    """No reader has seen the attempt, but the loss counts: the request may kill its workers."""
    created = await broker.enqueue(request_body())
    redis = broker.store.redis
    assert isinstance(await claim(redis, created.id, settings(redis.url), "default"), Claim)
    assert (await reap(broker, created.id)).outcome == b"NO"
    await redis.execute("HSET", keys.meta(created.id), "le", 1)
    reply = await reap(broker, created.id)
    assert (reply.outcome, reply.ticket) == (b"REQUEUE", 2)
    assert await redis.execute("HMGET", keys.meta(created.id), "own", "x", "k") == [b"", b"1", b"0"]
    state = await broker.store.state(created.id, "default")
    assert (state.status, state.attempt, str(state.cursor)) == ("queued", 0, "0-1")


async def test_a_generation_whose_waiting_is_over_fails_with_queue_timeout(broker: Broker) -> None:
    created = await broker.enqueue(request_body(tokencast={"queue_timeout": 0}))
    assert (await reap(broker, created.id)).outcome == b"EXPIRED"
    ended = await broker.get(created.id)
    assert (ended.status, ended.error and ended.error["code"]) == ("failed", "queue_timeout")
    assert [event.name async for event in broker.follow(created.id)] == ["created", "failed"]


async def test_it_fails_with_the_error_of_what_it_last_waited_for(broker: Broker) -> None:
    created = await broker.enqueue(request_body(tokencast={"queue_timeout": 3600}))
    redis = broker.store.redis
    held = await claim(redis, created.id, settings(redis.url), "default")
    assert isinstance(held, Claim)
    error = b'{"message":"Busy.","type":"rate_limit_error","code":"upstream_rate_limited","status":429}'
    waits = {"reason": "upstream_busy", "retry_at_ms": 1, "data": b'{"reason":"upstream_busy","retry_at":1}'}
    assert await commands.defer(redis, created.id, held.own, error=error, lane="default", **waits) == 2
    await redis.execute("HSET", keys.meta(created.id), "qd", 1)
    assert (await reap(broker, created.id)).outcome == b"EXPIRED"
    ended = await broker.get(created.id)
    assert ended.error == {
        "message": "Busy.",
        "type": "rate_limit_error",
        "code": "upstream_rate_limited",
        "status": 429,
    }
    assert [event.name async for event in broker.follow(created.id)] == ["created", "waiting", "failed"]


async def test_a_call_under_way_is_not_ended_by_the_deadline_of_its_waiting(broker: Broker) -> None:
    created = await broker.enqueue(request_body(tokencast={"queue_timeout": 3600}))
    redis = broker.store.redis
    held = await claim(redis, created.id, settings(redis.url), "default")
    assert isinstance(held, Claim)
    await redis.execute("HSET", keys.meta(created.id), "qd", 1)
    assert not await commands.expire(redis, created.id)
    assert (await reap(broker, created.id)).outcome == b"NO"
    assert (await broker.store.state(created.id, "default")).status == "queued"


async def test_a_worker_does_not_start_a_generation_whose_waiting_is_over(broker: Broker) -> None:
    created = await broker.enqueue(request_body(tokencast={"queue_timeout": 0}))
    redis = broker.store.redis
    assert await claim(redis, created.id, settings(redis.url), "default") == "LATE"
    assert await commands.expire(redis, created.id)
    assert not await commands.expire(redis, created.id)


async def test_one_that_was_paid_for_may_wait_for_another_hour(broker: Broker) -> None:
    """Its worker was lost after its attempt had begun."""
    created = await broker.enqueue(request_body(tokencast={"queue_timeout": 2}))
    redis = broker.store.redis
    held = await claim(redis, created.id, settings(redis.url), "default")
    assert isinstance(held, Claim)
    await begun(redis, held)
    await redis.execute("HSET", keys.meta(created.id), "le", 1, "qd", 1)
    assert (await reap(broker, created.id)).outcome == b"REQUEUE"
    deadline = int(await redis.execute("HGET", keys.meta(created.id), "qd")) / 1000
    assert 3500 < deadline - time.time() <= 3601


async def test_a_scheduled_generation_is_offered_for_its_time(broker: Broker) -> None:
    at = int(time.time()) + 3000
    created = await broker.enqueue(request_body(tokencast={"run_at": at}))
    reply = await reap(broker, created.id)
    assert (reply.outcome, reply.waiting[5]) == (b"REQUEUE", str(at * 1000).encode())
    assert int(await broker.store.redis.execute("HGET", keys.meta(created.id), "qd")) == (at + 3600) * 1000

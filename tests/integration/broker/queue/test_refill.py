"""The queue's Redis loses its data: all waiting generations are put back, from the logs, by one process."""

from __future__ import annotations

import time

import pytest

from broker import Broker
from broker.queue.refill import Refill
from broker.queue.tickets import Queue
from broker.redis.client import Redis
from broker.store import keys
from tests.integration.broker.queue.test_reaper import settings
from tests.integration.broker.queue.waiting import LEASE_MS, granted, pull, tenants
from tests.support import begun, request_body
from worker.claims import Claim, claim

BODY = request_body()


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


@pytest.fixture
def refill(broker: Broker) -> Refill:
    redis = broker.queue.redis
    return Refill(redis, Queue(redis), settings(redis.url))


async def lose(queue: Redis) -> None:
    """Lose what is in the queue's Redis, which is also that of the logs here."""
    names = [name for name in await queue.execute("KEYS", "*") if b"{" not in name]
    await queue.execute("DEL", *names)


async def grow_old(queue: Redis, seconds: float = 3600) -> str:
    """Make the queue's data as old as that of a server that has run for long; return since when it is trusted."""
    born = str(int((time.time() - seconds) * 1000))
    await queue.execute("SET", keys.BORN, born, "EX", 60)
    return born


async def after_the_grace(queue: Redis) -> str:
    """Let the time pass in which nothing is granted."""
    return await grow_old(queue, LEASE_MS / 3000 + 1.5)


async def test_all_waiting_generations_are_put_back_in_fair_order(broker: Broker, queue: Redis, refill: Refill) -> None:
    for _ in range(20):
        await broker.enqueue(BODY, tenant="tenant1")
    await broker.enqueue(BODY, tenant="tenant2")
    born = await grow_old(queue)
    await refill.check()
    await lose(queue)
    assert not (await pull(queue, born=born)).tickets  # notices the loss
    await refill.check()
    assert await broker.queue.depth() == 21
    assert "tenant2" in await tenants(queue, 2, born=await after_the_grace(queue))


async def test_a_ticket_is_put_back_with_its_options(broker: Broker, queue: Redis, refill: Refill) -> None:
    first = await broker.enqueue(request_body(tokencast={"priority": 1}))
    at = time.time() + 3000
    scheduled = await broker.enqueue(request_body(tokencast={"run_at": at}))
    born = await grow_old(queue)
    await refill.check()
    await lose(queue)
    await pull(queue, born=born)
    await refill.check()
    [entry] = await queue.execute("ZRANGE", keys.LATER, 0, -1)
    assert scheduled.id in entry.decode()
    assert float(await queue.execute("ZSCORE", keys.LATER, entry)) == pytest.approx(at * 1000, abs=2)
    assert await queue.execute("HGETALL", keys.DEPTH) == [b"default:1", b"1"]
    assert await granted(queue, born=await after_the_grace(queue)) == [first.id]


async def test_running_and_ended_generations_are_not_put_back(broker: Broker, queue: Redis, refill: Refill) -> None:
    running, claimed, ended = [(await broker.enqueue(BODY)).id for _ in range(3)]
    for gid in (running, claimed):
        held = await claim(queue, gid, settings(queue.url), "default")
        assert isinstance(held, Claim)
        if gid == running:
            await begun(queue, held)
    await broker.cancel(ended)
    born = await grow_old(queue)
    await refill.check()
    await lose(queue)
    await pull(queue, born=born)
    await refill.check()
    assert await broker.queue.depth() == 0


async def test_a_queue_that_lost_nothing_is_not_filled(broker: Broker, queue: Redis, refill: Refill) -> None:
    created = await broker.enqueue(BODY)
    await grow_old(queue)
    await refill.check()
    assert await granted(queue) == [created.id]
    await refill.check()
    assert await broker.queue.depth() == 0


async def test_a_process_that_starts_after_the_loss_fills_the_queue(
    broker: Broker, queue: Redis, refill: Refill
) -> None:
    """Of several processes only one reads a shard."""
    await broker.enqueue(BODY)
    await lose(queue)
    await pull(queue)
    other = Refill(queue, Queue(queue), settings(queue.url))
    await refill.check()
    assert await broker.queue.depth() == 1
    await granted(queue)
    await other.check()
    assert await broker.queue.depth() == 0


async def test_a_lane_that_no_longer_exists_is_replaced(broker: Broker, queue: Redis, refill: Refill) -> None:
    created = await broker.enqueue(BODY)
    await queue.execute("HSET", keys.meta(created.id), "ln", "removed")
    await lose(queue)
    await pull(queue)
    await refill.check()
    assert await granted(queue) == [created.id]

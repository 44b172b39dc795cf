"""The order of tickets: each tenant gets one turn per round, regardless of the other tenants and of lost data."""

from __future__ import annotations

import time

import pytest

from broker import Broker
from broker.ids import new_id
from broker.store import keys
from tests.integration.broker.queue.test_reaper import reaping
from tests.support import request_body, wait_until

TENANTS = [f"tenant{number}" for number in range(40)]


@pytest.fixture(autouse=True)
async def empty(broker: Broker) -> None:
    await broker.queue.redis.execute("FLUSHALL")


async def put(broker: Broker, tenant: str, count: int = 1) -> None:
    for _ in range(count):
        assert await broker.queue.enqueue(new_id(int(time.time() * 1000), tenant), tenant, 1)


async def order(broker: Broker) -> list[str]:
    """The tenants of the tickets, from the head of the queue."""
    tickets = await broker.queue.redis.execute("ZRANGE", keys.QUEUE, 0, -1)
    jobs = await broker.queue.redis.pipeline([("GET", keys.arq_job(ticket.decode())) for ticket in tickets])
    return [next(tenant for tenant in [*TENANTS, "default"] if f'"{tenant}"' in job.decode()) for job in jobs]


async def take(broker: Broker, count: int) -> None:
    """Take tickets from the head of the queue, as a worker does."""
    await broker.queue.redis.execute("ZPOPMIN", keys.QUEUE, count)


async def test_every_tenant_gets_one_turn_before_any_gets_another(broker: Broker) -> None:
    for count, tenant in enumerate(TENANTS, start=1):
        await put(broker, tenant, count)
    turns = await order(broker)
    while turns:
        waiting = set(turns)
        round_, turns = turns[: len(waiting)], turns[len(waiting) :]
        assert set(round_) == waiting


async def test_past_use_of_an_idle_queue_gives_no_debt_and_no_credit(broker: Broker) -> None:
    await put(broker, "tenant1", 100)
    await take(broker, 90)
    await put(broker, "tenant2", 100)
    assert (await order(broker))[:20].count("tenant2") == 10
    await take(broker, 200)
    await put(broker, "tenant1", 2)
    await put(broker, "tenant3", 1)
    assert set((await order(broker))[:2]) == {"tenant1", "tenant3"}


async def test_lost_fair_tags_cost_at_most_one_turn(broker: Broker) -> None:
    """Without them the flooding tenant starts at the head again: it gets two turns per round until its older tickets
    are done."""
    await put(broker, "tenant1", 100)
    await take(broker, 10)
    await broker.queue.redis.execute("DEL", keys.FAIR)
    await put(broker, "tenant1", 100)
    await put(broker, "tenant2")
    assert (await order(broker)).index("tenant2") <= 2


async def test_a_lost_queue_is_rebuilt_in_fair_order(broker: Broker) -> None:
    """By the reaper, from the logs: a tenant with many tickets gets no more turns than before."""
    body = request_body()
    for _ in range(30):
        await broker.enqueue(body, tenant="tenant1")
    await broker.enqueue(body, tenant="tenant2")
    execute = broker.queue.redis.execute
    for name in await execute("KEYS", "tc:*"):
        if b"{" not in name:
            await execute("DEL", name)
        elif name.endswith(b":live"):
            for gid in await execute("ZRANGE", name, 0, -1):
                await execute("ZADD", name, 1, gid)  # due
    async with reaping(broker.queue.redis.url, lease=0.5):
        await wait_until(lambda: _depth(broker, 31))
    assert (await order(broker)).index("tenant2") <= 1


async def _depth(broker: Broker, count: int) -> bool:
    return await broker.queue.depth() == count

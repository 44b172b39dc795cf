"""The order of tickets: each tenant has one turn a round, whatever the others have queued and whatever Redis lost."""

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
    """Whose tickets they are, from the head on."""
    tickets = await broker.queue.redis.execute("ZRANGE", keys.QUEUE, 0, -1)
    jobs = await broker.queue.redis.pipeline([("GET", keys.arq_job(ticket.decode())) for ticket in tickets])
    return [next(tenant for tenant in [*TENANTS, "default"] if f'"{tenant}"' in job.decode()) for job in jobs]


async def take(broker: Broker, count: int) -> None:
    """As a worker would, from the head."""
    await broker.queue.redis.execute("ZPOPMIN", keys.QUEUE, count)


async def test_many_tenants_have_one_turn_each_before_any_has_another(broker: Broker) -> None:
    for count, tenant in enumerate(TENANTS, start=1):
        await put(broker, tenant, count)
    turns = await order(broker)
    while turns:
        waiting = set(turns)
        round_, turns = turns[: len(waiting)], turns[len(waiting) :]
        assert set(round_) == waiting


async def test_who_used_an_idle_queue_owes_nothing_and_who_did_not_has_saved_nothing(broker: Broker) -> None:
    await put(broker, "tenant1", 100)
    await take(broker, 90)
    await put(broker, "tenant2", 100)
    assert (await order(broker))[:20].count("tenant2") == 10
    await take(broker, 200)
    await put(broker, "tenant1", 2)
    await put(broker, "tenant3", 1)
    assert set((await order(broker))[:2]) == {"tenant1", "tenant3"}


async def test_lost_tags_cost_one_turn_at_most(broker: Broker) -> None:
    """Without them the flood begins at the head again: two of its turns a round, until the older ones are through."""
    await put(broker, "tenant1", 100)
    await take(broker, 10)
    await broker.queue.redis.execute("DEL", keys.FAIR)
    await put(broker, "tenant1", 100)
    await put(broker, "tenant2")
    assert (await order(broker)).index("tenant2") <= 2


async def test_a_lost_queue_is_rebuilt_in_fair_order(broker: Broker) -> None:
    """By the reaper, from the logs: whoever had queued much has no more turns than before."""
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

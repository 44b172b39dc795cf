"""The order of tickets: strict priorities, and within one each tenant gets one turn per round, whatever others do."""

from __future__ import annotations

import json

import pytest

from broker import Broker
from broker.queue import commands
from broker.queue.commands import UpstreamLimits
from broker.redis.client import Redis
from broker.store import keys
from tests.integration.broker.queue.waiting import granted, pull, put, tenants, ticket

TENANTS = [f"tenant{number}" for number in range(20)]


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


async def test_every_tenant_gets_one_turn_before_any_gets_another(queue: Redis) -> None:
    for count, tenant in enumerate(TENANTS, start=1):
        await put(queue, tenant, count)
    turns: list[str] = []
    while taken := await tenants(queue):
        turns += taken
    assert len(turns) == sum(range(1, 21))
    while turns:
        waiting = set(turns)
        round_, turns = turns[: len(waiting)], turns[len(waiting) :]
        assert set(round_) == waiting


async def test_the_generations_of_a_tenant_keep_their_order(queue: Redis) -> None:
    created = await put(queue, "tenant1", 12)
    assert await granted(queue) + await granted(queue) == created


async def test_past_use_of_an_idle_queue_gives_no_debt_and_no_credit(queue: Redis) -> None:
    await put(queue, "tenant1", 100)
    for _ in range(10):
        await pull(queue)
    await put(queue, "tenant2", 100)
    both = [tenant for _ in range(3) for tenant in await tenants(queue)]
    assert 11 <= both.count("tenant2") <= 13
    while await tenants(queue):
        pass
    await put(queue, "tenant1", 2)
    await put(queue, "tenant3")
    assert set(await tenants(queue, 2)) == {"tenant1", "tenant3"}


async def test_lost_tags_cost_at_most_one_turn(queue: Redis) -> None:
    await put(queue, "tenant1", 100)
    await pull(queue)
    await queue.execute("DEL", keys.tags(3))
    await put(queue, "tenant2")
    assert "tenant2" in await tenants(queue, 3)


async def test_a_tenant_with_a_weight_gets_more_turns(queue: Redis) -> None:
    for tenant in ("tenant1", "tenant2"):
        await put(queue, tenant, 60)
    weighted = json.dumps({"tenant1": [0, 3]}).encode()
    turns = [tenant for _ in range(6) for tenant in await tenants(queue, other_tenants=weighted)]
    assert 35 <= turns.count("tenant1") <= 37


async def test_a_lower_priority_waits_for_all_higher_ones(queue: Redis) -> None:
    late = await put(queue, "tenant1", 2, priority=4)
    normal = await put(queue, "tenant1", 2)
    first = await put(queue, "tenant2", 2, priority=1)
    assert await granted(queue) == [*first, *normal, *late]


async def test_a_flood_in_another_priority_leaves_the_turns_of_this_one_fair(queue: Redis) -> None:
    await put(queue, "tenant1", 40, priority=1)
    for tenant in ("tenant1", "tenant2"):
        await put(queue, tenant, 40)
    flood = [tenant for _ in range(5) for tenant in await tenants(queue)]
    assert set(flood) == {"tenant1"}
    after = [tenant for _ in range(5) for tenant in await tenants(queue)]
    assert after.count("tenant1") == after.count("tenant2") == 20


async def test_a_priority_that_had_no_turn_for_long_gets_one(queue: Redis) -> None:
    [waited] = await put(queue, "tenant2", priority=5)
    await put(queue, "tenant1", 8, priority=1)
    await queue.execute("HSET", keys.LEVEL_TIMES, "default:5", 1)
    assert (await granted(queue, 2, ageing_ms=1000))[0] == waited


async def test_a_tenants_turns_are_shared_by_its_lanes(queue: Redis) -> None:
    """A tenant that asks several upstreams gets no more turns per upstream than one that asks a single one."""
    both = [UpstreamLimits("one", adaptive=False), UpstreamLimits("two", adaptive=False)]
    await put(queue, "tenant1", 20, lane="one")
    await put(queue, "tenant1", 20, lane="two")
    await put(queue, "tenant2", 20, lane="one")
    turns = [tenant for _ in range(4) for tenant in await tenants(queue, 5, upstreams=both)]
    assert turns.count("tenant2") == 10


async def test_a_full_upstream_does_not_delay_another_one(queue: Redis) -> None:
    upstreams = [UpstreamLimits("one", concurrency=1, adaptive=False), UpstreamLimits("two", adaptive=False)]
    await put(queue, "tenant1", 100, lane="one", priority=1)
    others = await put(queue, "tenant1", 5, lane="two", priority=5)
    taken = await granted(queue, 8, upstreams=upstreams)
    assert len(taken) == 6
    assert set(others) < set(taken)


async def test_a_lane_of_several_upstreams_uses_the_next_one_if_the_first_is_full(queue: Redis) -> None:
    upstreams = [UpstreamLimits(name, concurrency=2, adaptive=False) for name in ("one", "two")]
    await put(queue, "tenant1", 5, lane="one,two")
    assert len(await granted(queue, upstreams=upstreams)) == 4
    counts = await queue.pipeline([("ZCARD", keys.places("one")), ("ZCARD", keys.places("two"))])
    assert counts == [2, 2]


async def test_a_handed_back_generation_does_not_wait_for_another_round(queue: Redis) -> None:
    """Its tenant had a turn, but no run."""
    [refused] = await put(queue, "tenant9")
    assert await granted(queue) == [refused]
    for tenant in ("tenant1", "tenant2"):
        await put(queue, tenant, 10)
    assert len(await granted(queue, 4)) == 4
    await commands.offer(queue, ticket(refused, "tenant9", number=2))
    assert await granted(queue, 1) == [refused]

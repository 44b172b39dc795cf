"""Tickets, on the real scripts: offered, scheduled, withdrawn, and their positions."""

from __future__ import annotations

import time

import msgspec
import pytest

from broker import Broker
from broker.ids import created_ms, new_id
from broker.queue import commands
from broker.queue.commands import UpstreamLimits
from broker.queue.tickets import granted_name
from broker.redis.client import Redis
from broker.store import keys
from tests.integration.broker.queue.waiting import UNLIMITED, granted, now_ms, pull, put, ticket
from tests.support import wait_until

ANNA, BEN = "anna", "ben"


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


async def counts(queue: Redis) -> tuple[int, int]:
    """The number of waiting tickets by lane and priority, and by tenant."""
    by_level, by_tenant = await queue.pipeline([("HVALS", keys.DEPTH), ("HVALS", keys.WAITING_COUNTS)])
    return sum(map(int, by_level)), sum(map(int, by_tenant))


async def test_a_ticket_is_offered_once(queue: Redis) -> None:
    [gid] = await put(queue, ANNA)
    assert not await commands.offer(queue, ticket(gid, ANNA))
    assert await counts(queue) == (1, 1)
    assert await granted(queue) == [gid]
    assert await counts(queue) == (0, 0)


async def test_a_granted_ticket_is_a_job_of_arq_with_all_that_its_worker_needs(queue: Redis) -> None:
    gid = new_id(await now_ms(queue), ANNA)
    await commands.offer(queue, ticket(gid, ANNA, number=7, priority=2, tokens=99, lane="default,other"))
    [name] = (await pull(queue)).tickets
    assert name.decode() == granted_name(gid, 7)
    job = msgspec.json.decode(await queue.execute("GET", keys.arq_job(name.decode())))
    assert job["f"] == "generate"
    assert job["a"] == [gid, ANNA, "default", "default,other", 2, 99, True]


async def test_the_score_of_a_granted_ticket_is_never_zero(queue: Redis) -> None:
    """arq would take the time of the score as that of the enqueueing, and never see a ticket with the score 0."""
    created = [*await put(queue, ANNA, 3), *await put(queue, BEN, 3, order_ms=0)]
    assert set(await granted(queue)) == set(created)
    entries = await queue.execute("ZRANGE", keys.READY, 0, -1, "WITHSCORES")
    assert set(entries[1::2]) == {b"1"}


async def test_a_pull_takes_no_more_than_it_was_asked_for(queue: Redis) -> None:
    await put(queue, ANNA, 5)
    assert [len(await granted(queue, most)) for most in (1, 2, 8)] == [1, 2, 2]


# --- scheduled ---


async def test_a_scheduled_ticket_waits_for_its_time(queue: Redis) -> None:
    gid = new_id(await now_ms(queue), ANNA)
    at = await now_ms(queue) + 300
    assert await commands.offer(queue, ticket(gid, ANNA, order_ms=at, not_before_ms=at))
    assert not await commands.offer(queue, ticket(gid, ANNA, order_ms=at, not_before_ms=at))
    pulled = await pull(queue)
    assert not pulled.tickets
    assert pulled.wait_ms is not None
    assert pulled.wait_ms <= 300
    assert await counts(queue) == (0, 1)

    async def due() -> list[str]:
        return await granted(queue)

    assert await wait_until(due) == [gid]
    assert await now_ms(queue) >= at
    assert await counts(queue) == (0, 0)


async def test_a_time_in_the_past_does_not_delay_a_ticket(queue: Redis) -> None:
    gid = new_id(await now_ms(queue), ANNA)
    await commands.offer(queue, ticket(gid, ANNA, not_before_ms=await now_ms(queue) - 1))
    assert await granted(queue) == [gid]


# --- withdrawn ---


@pytest.mark.parametrize("at_ms", [0, 4_102_444_800_000], ids=["waiting", "scheduled"])
async def test_a_withdrawn_ticket_never_runs(queue: Redis, at_ms: int) -> None:
    gid, other = new_id(await now_ms(queue), ANNA), new_id(await now_ms(queue) + 1, ANNA)
    withdrawn = ticket(gid, ANNA, not_before_ms=at_ms)
    await commands.offer(queue, withdrawn)
    assert await commands.withdraw(queue, withdrawn)
    assert not await commands.withdraw(queue, withdrawn)
    assert await counts(queue) == (0, 0)
    assert not await queue.execute("EXISTS", keys.LATER)
    await commands.offer(queue, ticket(other, ANNA))
    assert await granted(queue) == [other]


async def test_a_withdrawn_ticket_that_was_granted_frees_its_places(queue: Redis) -> None:
    """Its worker has not taken it, and never will: it may be dead."""
    first, second = await put(queue, ANNA, 2)
    one = [UpstreamLimits("default", concurrency=1, adaptive=False)]
    assert await granted(queue, tenant_running=1, upstreams=one) == [first]
    assert await commands.withdraw(queue, ticket(first, ANNA))
    assert not await queue.execute("EXISTS", keys.READY, keys.arq_job(granted_name(first, 1)))
    assert await granted(queue, tenant_running=1, upstreams=one) == [second]


async def test_a_withdrawal_leaves_the_place_of_a_call_under_way(queue: Redis) -> None:
    [gid] = await put(queue, ANNA)
    await granted(queue)
    await queue.execute("ZREM", keys.READY, granted_name(gid, 1))  # as arq does when its job has returned
    assert not await commands.withdraw(queue, ticket(gid, ANNA))
    assert await commands.has_place(queue, gid, "default")


async def test_a_withdrawal_leaves_a_ticket_that_a_worker_has_begun_to_start(queue: Redis) -> None:
    """The worker may have called already; it finds the generation ended, and frees the place."""
    [gid] = await put(queue, ANNA)
    await granted(queue)
    await queue.execute("SET", keys.arq_starting(granted_name(gid, 1)), "1", "PX", 60_000)
    assert not await commands.withdraw(queue, ticket(gid, ANNA))
    assert await commands.has_place(queue, gid, "default")
    assert await queue.execute("EXISTS", keys.READY, keys.arq_job(granted_name(gid, 1))) == 2


# --- positions ---


async def positions(queue: Redis, gids: list[str], tenant: str, priority: int = 3) -> list[int | None]:
    return await commands.positions(queue, [ticket(gid, tenant, priority=priority) for gid in gids])


async def test_positions_are_the_order_in_which_the_tickets_of_all_tenants_run(queue: Redis) -> None:
    found: dict[str, int | None] = {}
    created = [(tenant, await put(queue, tenant, count)) for tenant, count in (("zoe", 1), (ANNA, 4), (BEN, 3))]
    for tenant, gids in created:
        found |= zip(gids, await positions(queue, gids, tenant), strict=True)
    order = await granted(queue)
    assert {gid: at for at, gid in enumerate(order, start=1)} == found


async def test_a_position_counts_higher_priorities(queue: Redis) -> None:
    [late] = await put(queue, ANNA, priority=5)
    await put(queue, BEN, 4, priority=1)
    assert await positions(queue, [late], ANNA, 5) == [5]


async def test_other_lanes_do_not_count_for_a_position(queue: Redis) -> None:
    await put(queue, BEN, 4, lane="other")
    [gid] = await put(queue, ANNA)
    assert await positions(queue, [gid], ANNA) == [1]


async def test_a_ticket_that_does_not_wait_has_no_position(queue: Redis) -> None:
    [gid] = await put(queue, ANNA)
    await granted(queue)
    scheduled = new_id(await now_ms(queue), ANNA)
    await commands.offer(queue, ticket(scheduled, ANNA, not_before_ms=4_102_444_800_000))
    assert await positions(queue, [gid, scheduled], ANNA) == [None, None]


async def test_a_position_among_very_many_tenants_is_unknown(queue: Redis) -> None:
    for number in range(202):
        await put(queue, f"tenant{number}")
    [gid] = await put(queue, ANNA)
    assert await positions(queue, [gid], ANNA) == [None]


# --- lost and changed ---


async def test_nothing_is_granted_until_workers_could_put_their_places_back(queue: Redis) -> None:
    """After the server lost its data, or stood still for half a lease: it may count too few places."""
    grace = 2000  # ms: a third of the lease and a second
    await put(queue, ANNA)
    pulled = await pull(queue, born="1", lease_ms=3000)  # seen before, and gone
    assert not pulled.tickets
    assert pulled.wait_ms is not None
    assert grace - 1000 < pulled.wait_ms <= grace
    assert pulled.born > 1
    later = await now_ms(queue) - grace - 1
    await queue.pipeline([("SET", keys.BORN, later, "EX", 60), ("SET", keys.TICK, later + grace, "EX", 60)])
    assert len(await granted(queue, born=str(later), lease_ms=3000)) == 1


@pytest.mark.parametrize("tick_ms_ago", [70_000, -2000], ids=["stood still", "clock set back"])
async def test_a_gap_in_the_servers_time_is_noticed(queue: Redis, tick_ms_ago: int) -> None:
    await put(queue, ANNA)
    born = await now_ms(queue) - 3_600_000
    await queue.pipeline(
        [("SET", keys.BORN, born, "EX", 60), ("SET", keys.TICK, await now_ms(queue) - tick_ms_ago, "EX", 60)]
    )
    pulled = await pull(queue, born=str(born))
    assert (pulled.tickets, pulled.born > born) == ([], True)


async def test_a_worker_that_has_just_started_does_not_wait(queue: Redis) -> None:
    await put(queue, ANNA)
    assert len(await granted(queue, born="")) == 1


async def test_tickets_of_a_lane_that_no_process_serves_are_given_to_the_caller(queue: Redis) -> None:
    """The settings have changed since they were created."""
    old = await put(queue, ANNA, 3, lane="removed")
    pulled = await pull(queue)
    assert [(one.gid, one.tenant, one.number, one.order_ms) for one in pulled.misplaced] == [
        (gid, ANNA, 1, created_ms(gid)) for gid in old
    ]
    assert await counts(queue) == (0, 0)


async def test_tickets_of_a_lane_that_another_worker_serves_stay(queue: Redis) -> None:
    elsewhere = [UpstreamLimits("other", adaptive=False)]
    await put(queue, ANNA, 2, lane="other")
    await granted(queue, 1, upstreams=elsewhere)  # that worker is alive
    assert (await pull(queue)).misplaced == []
    assert await counts(queue) == (1, 1)


@pytest.mark.parametrize("at_once", [0, 3])
async def test_tickets_for_an_upstream_that_this_worker_has_paused_stay(queue: Redis, at_once: int) -> None:
    """Their lane, by this worker's settings, is the same one, so it would move them again and again."""
    await put(queue, ANNA, 2, lane="paused")
    pulled = await pull(queue, upstreams=[UNLIMITED, UpstreamLimits("paused", at_once, paused=True)])
    assert (pulled.tickets, pulled.misplaced) == ([], [])
    assert await counts(queue) == (2, 2)


async def test_the_bell_rings_for_each_ticket_but_not_without_bound(queue: Redis) -> None:
    await put(queue, ANNA, 100)
    assert await queue.execute("LLEN", keys.BELL) == 64


async def test_the_oldest_waiting_generation_is_known(broker: Broker, queue: Redis) -> None:
    assert (await broker.queue.queue_depth()).longest_wait(time.time()) == 0
    await put(queue, ANNA, order_ms=await now_ms(queue) - 60_000)
    await put(queue, BEN, 2)
    depth = await broker.queue.queue_depth()
    assert depth.depth == 3
    assert depth.longest_wait(time.time()) >= 59

"""Reservations and parked tickets, on the real scripts: the order of tickets, and the recovery of lost reservations."""

from __future__ import annotations

import time

import pytest

from broker import Broker
from broker.errors import LimitExceeded
from broker.ids import new_id
from broker.queue.quotas import TenantLimits
from broker.queue.tickets import Queue
from broker.store import keys
from broker.store.storage_share import HOUR_MS, Stored
from tests.support import wait_until

ANNA, BEN = "anna", "ben"


@pytest.fixture
async def queue(broker: Broker) -> Queue:
    """A queue with a limit of one running generation per tenant."""
    await broker.queue.redis.execute("FLUSHALL")
    return Queue(broker.queue.redis, 3600, TenantLimits(running=1, lease=60))


def named(count: int) -> list[str]:
    now = int(time.time() * 1000)
    return [new_id(now + number, ANNA) for number in range(count)]


async def tickets(queue: Queue) -> list[str]:
    return [ticket.decode().removesuffix(".1") for ticket in await queue.redis.execute("ZRANGE", keys.QUEUE, 0, -1)]


async def park(queue: Queue, *gids: str) -> None:
    """Park tickets, as a worker does after it took them."""
    for gid in gids:
        assert not await queue.quotas.acquire(ANNA, gid)
        assert not await queue.enqueue(gid, ANNA, 1, park=True)


async def test_a_released_reservation_goes_to_the_oldest_parked_ticket(queue: Queue) -> None:
    """It already had its turn: tickets queued in the meantime come after it."""
    running, first, second, third = named(4)
    assert await queue.quotas.acquire(ANNA, running)
    await park(queue, third, first, second)
    for gid in named(5):
        await queue.enqueue(gid, BEN, 1)
    await queue.release(running, ANNA)
    assert (await tickets(queue))[0] == first
    assert len(await tickets(queue)) == 6
    assert await queue.quotas.acquire(ANNA, first)
    assert not await queue.quotas.acquire(ANNA, second)


async def test_a_parked_ticket_is_not_rewritten_before_the_quota_has_room(queue: Queue) -> None:
    """By the reaper, which finds waiting generations without a ticket."""
    running, waiting = named(2)
    assert await queue.quotas.acquire(ANNA, running)
    await park(queue, waiting)
    assert not await queue.enqueue(waiting, ANNA, 1)
    assert await tickets(queue) == []
    await queue.redis.execute("DEL", keys.running(ANNA))
    assert await queue.enqueue(waiting, ANNA, 1)
    assert await tickets(queue) == [waiting]
    assert not await queue.enqueue(waiting, ANNA, 1)


async def test_a_ticket_is_not_parked_if_a_reservation_was_released_meanwhile(queue: Queue) -> None:
    """The reservation was released between the two calls, so no later release would unpark the ticket."""
    running, waiting = named(2)
    assert await queue.quotas.acquire(ANNA, running)
    assert not await queue.quotas.acquire(ANNA, waiting)
    await queue.release(running, ANNA)
    assert await queue.enqueue(waiting, ANNA, 1, park=True)
    assert await tickets(queue) == [waiting]


async def test_the_reservation_of_a_withdrawn_ticket_goes_to_the_next(queue: Queue) -> None:
    running, first, second = named(3)
    assert await queue.quotas.acquire(ANNA, running)
    await park(queue, first, second)
    await queue.release(running, ANNA)
    assert await tickets(queue) == [first]
    await queue.withdraw(first, ANNA, 1)
    assert await tickets(queue) == [second]


async def test_a_reservation_ends_with_its_lease(queue: Queue) -> None:
    short = Queue(queue.redis, 3600, TenantLimits(running=1, lease=0.001))
    dead, alive = named(2)
    assert await short.quotas.acquire(ANNA, dead)
    await wait_until(lambda: queue.quotas.acquire(ANNA, alive))
    assert not await queue.quotas.acquire(ANNA, dead)


SHARE = 1000


def bytes_of(size: int, hours: float = 1) -> Stored:
    return Stored(size, int((time.time() + hours * 3600) * 1000))


async def stored(queue: Queue) -> dict[bytes, bytes]:
    flat = await queue.redis.execute("HGETALL", keys.stored(ANNA))
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def test_a_tenant_at_its_share_of_bytes_is_refused_until_some_are_released(queue: Queue) -> None:
    """The request that exceeds the limit is still accepted, so that a request larger than the share is possible."""
    admit, large = queue.quotas.admit, bytes_of(5 * SHARE)
    await admit(ANNA, "g1", bytes_of(1), SHARE)
    await admit(ANNA, "g2", large, SHARE)
    with pytest.raises(LimitExceeded, match="stored requests"):
        await admit(ANNA, "g3", bytes_of(1), SHARE)
    await admit(BEN, "g4", bytes_of(1), SHARE)
    await queue.quotas.release_bytes(ANNA, large, SHARE)
    await admit(ANNA, "g5", bytes_of(1), SHARE)


async def test_a_cancelled_admission_stores_nothing(queue: Queue) -> None:
    one = bytes_of(SHARE)
    for _ in range(3):
        counted = await queue.quotas.admit(ANNA, "g", one, SHARE)
        await queue.quotas.cancel_admission(ANNA, "g", counted, one, SHARE)
    assert (await stored(queue))[b"sum"] == b"0"


async def test_expired_bytes_are_subtracted_and_a_wrong_sum_is_corrected(queue: Queue) -> None:
    """Once an hour the sum is recomputed from the remaining parts, so a wrong sum or a negative part does not
    persist."""
    this_hour = int(time.time() * 1000) // HOUR_MS
    await queue.quotas.admit(ANNA, "g", bytes_of(10, hours=5), SHARE)
    wrong = ("hour", this_hour - 1, "sum", 10**9, this_hour - 3, 700, this_hour, 600, this_hour + 2, -400)
    await queue.redis.execute("HSET", keys.stored(ANNA), *wrong)
    await queue.quotas.admit(ANNA, "g2", bytes_of(10, hours=5), SHARE)
    left = await stored(queue)
    assert left[b"sum"] == b"20"
    assert str(this_hour - 3).encode() not in left
    assert str(this_hour).encode() not in left
    assert await queue.redis.execute("PTTL", keys.stored(ANNA)) > 0

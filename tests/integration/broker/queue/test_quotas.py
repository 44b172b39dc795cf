"""Quotas, on the real scripts: what counts as waiting, and the bytes of stored requests."""

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
from tests.integration.broker.queue.waiting import granted, ticket

ANNA, BEN = "anna", "ben"


@pytest.fixture
async def queue(broker: Broker) -> Queue:
    await broker.queue.redis.execute("FLUSHALL")
    return Queue(broker.queue.redis, TenantLimits())


def named(count: int) -> list[str]:
    now = int(time.time() * 1000)
    return [new_id(now + number, ANNA) for number in range(count)]


async def test_waiting_scheduled_and_admitted_generations_count_until_they_are_granted(queue: Queue) -> None:
    limited = Queue(queue.redis, TenantLimits(queued=3))
    waiting, scheduled, admitted, refused = named(4)
    for gid, not_before in ((waiting, 0), (scheduled, 4_102_444_800_000)):
        await limited.quotas.admit(ANNA, gid)
        await limited.offer(ticket(gid, ANNA, not_before_ms=not_before))
    await limited.quotas.admit(ANNA, admitted)
    with pytest.raises(LimitExceeded, match="3 generations are already waiting"):
        await limited.quotas.admit(ANNA, refused)
    await limited.quotas.admit(BEN, refused)
    assert await granted(queue.redis) == [waiting]
    await limited.quotas.admit(ANNA, refused)


async def test_a_withdrawn_ticket_and_a_cancelled_admission_no_longer_count(queue: Queue) -> None:
    limited = Queue(queue.redis, TenantLimits(queued=1))
    first, second, third = named(3)
    await limited.quotas.admit(ANNA, first)
    await limited.offer(ticket(first, ANNA))
    await limited.withdraw(ticket(first, ANNA))
    counted = await limited.quotas.admit(ANNA, second)
    await limited.quotas.cancel_admission(ANNA, second, counted)
    await limited.quotas.admit(ANNA, third)


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

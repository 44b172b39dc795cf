"""Tickets that a process of 0.1.0 writes while workers of this version run."""

from __future__ import annotations

import pytest

from broker import Broker
from broker.broker import OPEN_TENANT
from broker.ids import new_id
from broker.queue.old_queue import OldQueue
from broker.queue.tickets import Queue
from broker.redis.client import Redis
from broker.request.body import parse_request
from broker.store import keys
from tests.integration.broker.queue.test_reaper import settings
from tests.integration.broker.queue.waiting import granted, now_ms
from tests.support import Writer, request_body

JOB = '{"t":null,"f":"generate","a":[],"k":{},"et":1}'


@pytest.fixture
async def queue(broker: Broker) -> Redis:
    await broker.queue.redis.execute("FLUSHALL")
    return broker.queue.redis


@pytest.fixture
def old(broker: Broker) -> OldQueue:
    return of_worker(broker, is_stopping=False)


def of_worker(broker: Broker, *, is_stopping: bool) -> OldQueue:
    redis = broker.queue.redis
    tenants = settings(redis.url).model_copy(update={"api_keys": (f"anna:{'0' * 64}",)})
    return OldQueue(redis, Queue(redis), tenants, lambda: is_stopping)


async def created(broker: Broker, tenant: str = OPEN_TENANT) -> str:
    """Create a generation without a ticket."""
    return (await broker.store.create(parse_request(request_body()), tenant, None)).id


async def put(queue: Redis, *gids: str, name: str = keys.OLD_QUEUE) -> None:
    """Write tickets as 0.1.0 does."""
    for number, gid in enumerate(gids):
        ticket = f"{gid}.1"
        await queue.pipeline(
            [
                *(("ZADD", name, number, ticket), ("EXPIRE", name, 600)),
                ("SET", keys.arq_job(ticket), JOB, "EX", 600),
            ]
        )


async def test_tickets_move_in_their_order_and_leave_nothing(broker: Broker, queue: Redis, old: OldQueue) -> None:
    gids = [await created(broker) for _ in range(3)]
    await put(queue, *gids)
    await old.move()
    await old.move()
    assert await broker.queue.depth() == 3
    assert await queue.execute("EXISTS", keys.OLD_QUEUE, *(keys.arq_job(f"{gid}.1") for gid in gids)) == 0
    assert await granted(queue) == sorted(gids)  # by their times


async def test_a_worker_that_stops_leaves_them_to_others(broker: Broker, queue: Redis) -> None:
    await put(queue, await created(broker))
    await of_worker(broker, is_stopping=True).move()
    assert (await broker.queue.depth(), await queue.execute("ZCARD", keys.OLD_QUEUE)) == (0, 1)


async def test_a_parked_ticket_moves(broker: Broker, queue: Redis, old: OldQueue) -> None:
    gid = await created(broker, "anna")
    await put(queue, gid, name=keys.old_parked("anna"))
    await old.move()
    assert await queue.execute("EXISTS", keys.old_parked("anna")) == 0
    assert await granted(queue) == [gid]


async def test_a_ticket_of_one_that_does_not_wait_is_removed(broker: Broker, queue: Redis, old: OldQueue) -> None:
    claimed, running, ended = [await created(broker) for _ in range(3)]
    await Writer(broker.store.redis, claimed).claim(begin=False)
    await Writer(broker.store.redis, running).claim()
    await broker.cancel(ended)
    await put(queue, claimed, running, ended, new_id(await now_ms(queue), OPEN_TENANT), "not an id", "gen_\ufffd")
    await old.move()
    assert await queue.execute("EXISTS", keys.OLD_QUEUE) == 0
    assert await broker.queue.depth() == 0


async def test_more_tickets_than_one_look_takes_stay_for_the_next(
    broker: Broker, queue: Redis, old: OldQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.old_queue.MOST", 2)
    monkeypatch.setattr("broker.queue.old_queue.AT_ONCE", 1)
    await put(queue, *[await created(broker) for _ in range(3)])
    await old.move()
    assert (await broker.queue.depth(), await queue.execute("ZCARD", keys.OLD_QUEUE)) == (2, 1)
    await old.move()
    assert (await broker.queue.depth(), await queue.execute("ZCARD", keys.OLD_QUEUE)) == (3, 0)

"""Batches on a real Redis: a result for each body, whatever happens to the others."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker import (
    BodyTooLarge,
    Broker,
    BrokerError,
    Generation,
    IdempotencyConflict,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    StorageUnavailable,
    connect,
)
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import SHARDS, shard_of
from broker.settings.settings import Settings
from broker.store import bulk, keys
from tests.support import request_body

TENANT = "anna"


@pytest.fixture
async def limited(redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    """A broker on an empty Redis, with small limits for tenants with a key."""
    limits = {"tenant_queued": 8, "tenant_per_minute": 12, "tenant_running": 20, "max_body": 2000, "models": ("m",)}
    settings = Settings(REDIS_URL=redis.url, **limits)  # pyright: ignore[reportCallIssue, reportArgumentType]
    async with connect(settings=settings) as broker:
        await broker.store.redis.execute("FLUSHALL")
        yield broker


def accepted(results: list[Generation | BrokerError]) -> list[Generation]:
    return [one for one in results if isinstance(one, Generation)]


async def tickets(broker: Broker) -> set[str]:
    redis = broker.queue.redis
    names = await redis.execute("KEYS", keys.waiting("*", "*"))
    found = await redis.pipeline([("ZRANGE", name, 0, -1) for name in names])
    return {ticket.decode().partition(".")[0] for some in found for ticket in some}


async def waiting(broker: Broker) -> int:
    return int(await broker.queue.redis.execute("HGET", keys.WAITING_COUNTS, TENANT) or 0)


async def this_minute(broker: Broker) -> int:
    names = await broker.queue.redis.execute("KEYS", f"{keys.creations(TENANT)}:*")
    return sum(int(count) for count in await broker.queue.redis.pipeline([("GET", name) for name in names]))


async def test_each_body_has_its_result_in_its_place(limited: Broker) -> None:
    bodies: list[Any] = [
        request_body("first", metadata={"n": "0"}),
        {"model": "m"},
        request_body("x" * 3000),
        request_body(model="unheard-of"),
        {**request_body(), "temperature": float("nan")},
        request_body(tokencast={"run_at": 9e10}),
        request_body("last", metadata={"n": "6"}),
    ]
    results = await limited.enqueue_batch(bodies)
    kinds = [Generation, InvalidRequest, BodyTooLarge, ModelNotFound, InvalidRequest, InvalidRequest, Generation]
    assert [type(one) for one in results] == kinds
    first, last = accepted(results)
    assert (first.metadata, last.metadata) == ({"n": "0"}, {"n": "6"})
    assert await tickets(limited) == {first.id, last.id}
    for one in (first, last):
        assert (await limited.store.state(one.id, "default")).summary() == one.summary()


async def test_a_repeated_batch_returns_the_same_generations(limited: Broker) -> None:
    bodies = [request_body(str(n)) for n in range(250)]
    made = accepted(await limited.enqueue_batch(bodies, idempotency_key="K"))
    again = accepted(await limited.enqueue_batch(bodies, idempotency_key="K"))
    assert len({one.id for one in made}) == 250
    assert [one.id for one in again] == [one.id for one in made]
    assert len(await tickets(limited)) == 250
    single = await limited.enqueue(bodies[7], idempotency_key="K#7")
    assert single.id == made[7].id
    other = await limited.enqueue_batch([*bodies[:3], request_body("another")], idempotency_key="K")
    assert [one.id for one in accepted(other)] == [one.id for one in made[:3]]
    assert isinstance(other[3], IdempotencyConflict)


async def test_a_repeated_batch_completes_a_half_one(limited: Broker) -> None:
    bodies = [request_body(str(n)) for n in range(40)]
    half = accepted(await limited.enqueue_batch(bodies[:25], idempotency_key="half"))
    whole = accepted(await limited.enqueue_batch(bodies, idempotency_key="half"))
    assert [one.id for one in whole[:25]] == [one.id for one in half]
    assert len({one.id for one in whole}) == 40


async def test_a_quota_admits_the_first_ones(limited: Broker) -> None:
    bodies = [request_body(str(n)) for n in range(10)]
    results = await limited.enqueue_batch(bodies, idempotency_key="K", tenant=TENANT)
    assert [type(one) for one in results] == [Generation] * 8 + [LimitExceeded] * 2
    assert await waiting(limited) == await this_minute(limited) == 8
    again = await limited.enqueue_batch(bodies, idempotency_key="K", tenant=TENANT)
    assert [one.id for one in accepted(again)] == [one.id for one in accepted(results)]
    assert await this_minute(limited) == 8
    for one in accepted(results)[:6]:
        await limited.cancel(one.id, TENANT)
    more = await limited.enqueue_batch([request_body() for _ in range(9)], tenant=TENANT)
    assert [type(one) for one in more] == [Generation] * 4 + [LimitExceeded] * 5
    assert await this_minute(limited) == 12


async def test_what_is_not_created_is_not_counted(limited: Broker) -> None:
    await limited.enqueue_batch([request_body("one"), request_body("two")], idempotency_key="K", tenant=TENANT)
    records = await limited.store.redis.execute("KEYS", "tc:*:idem:*")
    results = await limited.enqueue_batch(
        [request_body("another"), request_body("two"), request_body("three")], idempotency_key="K", tenant=TENANT
    )
    assert [type(one) for one in results] == [IdempotencyConflict, Generation, Generation]
    assert len(records) == 2
    assert await waiting(limited) == await this_minute(limited) == 3


async def test_a_full_redis_is_an_error_of_each_new_body(limited: Broker) -> None:
    made = accepted(await limited.enqueue_batch([request_body()], idempotency_key="K"))
    redis = limited.store.redis
    await redis.execute("CONFIG", "SET", "maxmemory", "1")
    try:
        results = await limited.enqueue_batch([request_body(), request_body("new")], idempotency_key="K")
    finally:
        await redis.execute("CONFIG", "SET", "maxmemory", "0")
    assert [type(one) for one in results] == [Generation, StorageUnavailable]
    again = await limited.enqueue_batch([request_body(), request_body("new")], idempotency_key="K")
    assert accepted(again)[0].id == made[0].id
    assert len(accepted(again)) == 2


async def test_scripts_that_redis_has_lost_are_loaded_again(limited: Broker) -> None:
    await limited.store.redis.execute("SCRIPT", "FLUSH")
    results = await limited.enqueue_batch([request_body() for _ in range(120)])
    assert len(accepted(results)) == 120
    assert await tickets(limited) == {one.id for one in accepted(results)}


async def test_a_shard_is_in_two_pipelines_at_most(limited: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    redis, sent = limited.store.redis, list[set[str]]()
    run_each = redis.run_each

    async def recorded(script: Any, calls: Any) -> Any:
        if script.name == "create":
            sent.append({shard_of(arguments[0]) for _, arguments in calls})
        return await run_each(script, calls)

    monkeypatch.setattr(redis, "run_each", recorded)
    results = await limited.enqueue_batch([request_body(str(n)) for n in range(1000)])
    assert len(accepted(results)) == 1000
    assert len(sent) == 1000 // bulk.SLICE
    assert max(sum(shard in shards for shards in sent) for shard in SHARDS) <= 2


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_has_1_to_1000_bodies(limited: Broker, count: int) -> None:
    with pytest.raises(InvalidRequest, match="1 to 1000") as raised:
        await limited.enqueue_batch([request_body()] * count)
    assert raised.value.param == "generations"


async def test_a_key_leaves_room_for_the_position(limited: Broker) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await limited.enqueue_batch([request_body()], idempotency_key="k" * 252)
    assert raised.value.param == "idempotency-key"
    assert len(accepted(await limited.enqueue_batch([request_body()], idempotency_key="k" * 251))) == 1

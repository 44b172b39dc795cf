"""Retries on a real Redis: the same request again, once under a key."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker import (
    Broker,
    Generation,
    GenerationGone,
    GenerationNotFound,
    IdempotencyConflict,
    InvalidRequest,
    NotEnded,
    RequestNotKept,
    connect,
)
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from broker.store.commands import lifecycle_keys
from tests.integration.broker.webhooks.scene import settings
from tests.support import FINISH, Writer, request_body

WEBHOOK = {"url": "https://example.org/hook", "events": ["failed"]}
OPTIONS = {"priority": 1, "group": "night", "webhook": WEBHOOK, "delay_seconds": 3600, "queue_timeout": 7}
KEPT = ("md", "rq", "mt", "pol", "ttl", "pt", "pr", "gr", "wh")


@pytest.fixture
async def broker(redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    """A broker that has seen no other data than that of its test."""
    async with connect(settings=settings(redis.url)) as connected:
        await connected.store.redis.execute("FLUSHALL")
        yield connected


async def failed(broker: Broker, code: str = "timeout", **more: Any) -> str:
    gid = (await broker.enqueue(request_body(**more))).id
    writer = await Writer(broker.store.redis, gid).claim()
    error = b'{"message":"m","type":"server_error","code":"%b"}' % code.encode()
    finish = ["failed", "", "", error, "[]", 0, "f", 0, b'{"error":%b}' % error]
    await broker.store.redis.run(FINISH, lifecycle_keys(gid), [gid, writer.own, f"{writer.attempt}-", 1, *finish])
    return gid


async def kept(broker: Broker, gid: str) -> list[bytes]:
    return await broker.store.redis.execute("HMGET", keys.meta(gid), *KEPT)


async def test_a_retry_has_the_same_request_and_names_the_old_one(broker: Broker) -> None:
    own = {"metadata": {"order": "17"}, "on_upstream_error": "restart", "ttl_seconds": 600, "temperature": 0.5, "n": 2}
    old = await failed(broker, **own, tokencast=OPTIONS)
    new = await broker.retry(old)
    assert (new.status, new.retry_of, new.run_at) == ("queued", old, None)
    assert (new.priority, new.group, new.metadata) == (1, "night", {"order": "17"})
    assert await kept(broker, new.id) == await kept(broker, old)
    assert (await broker.get(old)).status == "failed"
    name = keys.waiting("default:1", "default")
    assert await broker.queue.redis.execute("ZSCORE", name, f"{new.id}.1.{new.tokens}") is not None
    assert (await broker.retry((await broker.cancel(new.id)).id)).retry_of == new.id


async def test_only_what_has_ended_and_is_kept_can_be_retried(broker: Broker) -> None:
    waiting = await broker.enqueue(request_body())
    with pytest.raises(NotEnded):
        await broker.retry(waiting.id)
    long = await broker.enqueue(request_body("x" * 20_000))
    await broker.cancel(long.id)
    with pytest.raises(RequestNotKept):
        await broker.retry(long.id)
    await broker.delete(waiting.id)
    with pytest.raises(GenerationGone):
        await broker.retry(waiting.id)
    with pytest.raises(GenerationNotFound):
        await broker.retry(long.id, tenant="another")


async def test_a_key_makes_one_retry(broker: Broker) -> None:
    first, second = await failed(broker), await failed(broker)
    new = await broker.retry(first, idempotency_key="again")
    assert (await broker.retry(first, idempotency_key="again")).id == new.id
    with pytest.raises(IdempotencyConflict):
        await broker.retry(second, idempotency_key="again")


async def test_all_that_match_are_retried(broker: Broker) -> None:
    timed_out = [await failed(broker) for _ in range(3)]
    others = [await failed(broker, "upstream_error"), (await broker.enqueue(request_body())).id]
    in_group = await failed(broker, tokencast={"group": "g"})
    found = await broker.retry_all(code="timeout", dry_run=True)
    assert (found.matched, found.retried, found.has_more) == (4, 0, False)
    assert [one.id for one in found.data if isinstance(one, Generation)] == sorted([*timed_out, in_group], reverse=True)
    assert len((await broker.list()).data) == 6
    one = await broker.retry_all(group="g", since=0, until=9e9)
    assert (one.matched, one.retried) == (1, 1)
    done = await broker.retry_all(code="timeout", limit=3)
    assert (done.matched, done.retried, done.has_more) == (3, 3, True)
    retried = [new.retry_of for new in done.data if isinstance(new, Generation)]
    assert retried == sorted([*timed_out, in_group], reverse=True)[:3]
    assert not set(others) & set(retried)


async def test_under_a_key_each_one_is_retried_once(broker: Broker) -> None:
    for _ in range(2):
        await failed(broker)
    first = await broker.retry_all(idempotency_key="K")
    late = await failed(broker)
    second = await broker.retry_all(idempotency_key="K")
    assert (second.matched, second.retried) == (3, 3)
    names = {one.id for one in second.data if isinstance(one, Generation)}
    assert {one.id for one in first.data if isinstance(one, Generation)} < names
    assert len((await broker.list(status="queued")).data) == 3
    assert late in {one.retry_of for one in second.data if isinstance(one, Generation)}


async def test_a_match_without_its_request_is_an_error_in_its_place(broker: Broker) -> None:
    long = await broker.enqueue(request_body("x" * 20_000))
    short = await broker.enqueue(request_body())
    for one in (long, short):
        await broker.cancel(one.id)
    done = await broker.retry_all(status=["cancelled", "failed"])
    assert (done.matched, done.retried) == (2, 1)
    assert {type(one) for one in done.data} == {Generation, RequestNotKept}


async def test_long_requests_are_read_a_few_at_a_time(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.store.bulk.READ_BYTES", 3000)
    for number in range(7):
        await failed(broker, prompt=str(number) * 1000)
    done = await broker.retry_all()
    assert (done.matched, done.retried) == (7, 7)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"status": "queued"}, "status"),
        ({"status": []}, "status"),
        ({"status": ["failed", "in_progress"]}, "status"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"group": ""}, "group"),
        ({"since": float("nan")}, "since"),
        ({"idempotency_key": "k" * 230}, "idempotency-key"),
    ],
)
async def test_wrong_conditions_are_named(broker: Broker, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await broker.retry_all(**wrong)
    assert raised.value.param == param

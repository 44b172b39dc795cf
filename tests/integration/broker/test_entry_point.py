"""`Broker` checks requests in the same way as the HTTP route; listing, waiting, and the content of events."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from opentelemetry import trace

import broker as package
from broker import Broker, BrokerError, GenerationGone, GenerationNotFound, InvalidRequest, connect, errors
from broker.dev.embedded_redis import EmbeddedRedis
from broker.settings.settings import Settings
from tests.support import Gateway, Writer, gateway, request_body, wait_until

KEYS = f"anna:{hashlib.sha256(b'key-anna').hexdigest()}"
ANNA = {"authorization": "Bearer key-anna"}
MOST = 4000  # bytes of a body
SETTINGS = {"models": "m,m-*", "max_body": str(MOST), "tenant_queued": "2", "api_keys": KEYS}


@pytest.fixture(scope="module")
async def limited(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **{f"TOKENCAST_{name.upper()}": value for name, value in SETTINGS.items()}) as api:
        yield api


@pytest.fixture
async def direct(redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Broker, None]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"TOKENCAST_{name.upper()}", value)
    async with connect(settings=Settings(REDIS_URL=redis.url)) as connected:  # pyright: ignore[reportCallIssue]
        yield connected


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def of_size(size: int) -> dict[str, Any]:
    """A body with this size in bytes as JSON, of characters with three bytes each."""
    empty = len(msgspec.json.encode(request_body("")))
    return request_body("語" * ((size - empty) // 3) + "x" * ((size - empty) % 3))


BODIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "no model": ({"messages": [{"role": "user", "content": "x"}]}, None),
    "no messages": ({"model": "m"}, None),
    "empty messages": ({"model": "m", "messages": []}, None),
    "an invalid message": ({"model": "m", "messages": ["x"]}, None),
    "an invalid role": ({"model": "m", "messages": [{"role": 7}]}, None),
    "an empty model": (request_body(model=""), None),
    "a long model": (request_body(model="m" * 257), None),
    "an unknown model": (request_body(model="other"), None),
    "n": (request_body(n=0), None),
    "a boolean n": (request_body(n=True), None),
    "metadata": (request_body(metadata={"a": 1}), None),
    "long metadata": (request_body(metadata={"a": "x" * 513}), None),
    "much metadata": (request_body(metadata={str(number): "x" for number in range(17)}), None),
    "on_upstream_error": (request_body(on_upstream_error="retry"), None),
    "a short ttl": (request_body(ttl_seconds=0), None),
    "a long ttl": (request_body(ttl_seconds=1e9), None),
    "too deep": (request_body(tools=nested(101)), None),
    "too large": (of_size(MOST + 1), None),
    "a long key": (request_body(), "k" * 256),
    "a long key and an unknown model": (request_body(model="other"), "k" * 256),
}


@pytest.mark.parametrize("name", BODIES)
async def test_an_invalid_request_is_refused_as_over_http(limited: Gateway, direct: Broker, name: str) -> None:
    body, key = BODIES[name]
    headers = {**ANNA, "idempotency-key": key} if key else ANNA
    answer = await limited.http.post("/v1/generations", json=body, headers=headers)
    assert 400 <= answer.status_code < 500
    with pytest.raises(BrokerError) as refused:
        await direct.enqueue(body, idempotency_key=key, tenant="anna")
    reported = answer.json()["error"]
    assert (refused.value.message, refused.value.code, refused.value.param) == (
        reported["message"],
        reported["code"],
        reported["param"],
    )
    assert [one.id for one in (await direct.list(tenant="anna")).data] == []


async def test_a_valid_request_is_accepted_as_over_http(limited: Gateway, direct: Broker) -> None:
    """With the largest body, the longest key and an empty key. A tenant's limits apply to both."""
    largest = of_size(MOST)
    first = await direct.enqueue(largest, idempotency_key="k" * 255, tenant="anna")
    headers = {**ANNA, "idempotency-key": "k" * 255}
    same = await limited.http.post("/v1/generations", json=largest, headers=headers)
    assert (same.status_code, same.json()["id"]) == (200, first.id)
    second = await direct.enqueue(request_body(), idempotency_key="", tenant="anna")
    answer = await limited.http.post("/v1/generations", json=request_body(), headers=ANNA)
    with pytest.raises(errors.LimitExceeded) as refused:
        await direct.enqueue(request_body(), tenant="anna")
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == refused.value.message
    for one in (first, second):
        await direct.delete(one.id, tenant="anna")


@pytest.mark.parametrize("value", [math.nan, math.inf, b"x", {"x"}, object()])
async def test_values_that_json_cannot_represent_are_refused(broker: Broker, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await broker.enqueue(request_body(temperature=value))
    assert refused.value.code == "invalid_json"


async def test_an_extremely_deep_body_is_refused(broker: Broker) -> None:
    with pytest.raises(InvalidRequest, match="levels of arrays"):
        await broker.enqueue(request_body(tools=nested(100_000)))


async def test_half_a_surrogate_pair_is_replaced_as_browsers_do(broker: Broker) -> None:
    generation = await broker.enqueue(request_body(metadata={"cut": "a\ud83d", "whole": "\ud83d\ude00"}))
    assert (await broker.get(generation.id)).metadata == {"cut": "a\ufffd", "whole": "😀"}
    with pytest.raises(InvalidRequest) as refused:
        await broker.enqueue(request_body(), idempotency_key="\ud83d")
    assert refused.value.param == "idempotency-key"


async def test_a_list_is_read_page_by_page(broker: Broker) -> None:
    made = [await broker.enqueue(request_body(), tenant="ben") for _ in range(5)]
    await broker.cancel(made[0].id, tenant="ben")
    first = await broker.list(limit=3, tenant="ben")
    rest = await broker.list(limit=3, after=first.data[-1].id, tenant="ben")
    assert [one.id for one in (*first.data, *rest.data)] == sorted((one.id for one in made), reverse=True)
    assert (first.has_more, rest.has_more) == (True, False)
    assert [one.id for one in (await broker.list(status="cancelled", tenant="ben")).data] == [made[0].id]
    assert (await broker.list(tenant="nobody")).data == []
    for wrong in ({"limit": 0}, {"limit": 101}, {"status": "done"}):
        with pytest.raises(InvalidRequest) as refused:
            await broker.list(**wrong)
        assert refused.value.param == next(iter(wrong))
    with pytest.raises(GenerationNotFound):
        await broker.list(after="x")


async def test_waiting_ends_with_the_generation(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    waiting = asyncio.create_task(broker.wait(generation.id, timeout=60))
    writer = await Writer(broker.store.redis, generation.id).claim()
    await writer.append("Good ", "morning")
    with pytest.raises(TimeoutError):
        await broker.wait(generation.id, timeout=0.01)
    assert not waiting.done()
    await writer.finish()
    ended = await waiting
    assert (ended.status, ended.text) == ("completed", "Good morning")
    assert await broker.wait(generation.id) == ended
    cancelled = await broker.enqueue(request_body())
    waiting = asyncio.create_task(broker.wait(cancelled.id))
    await broker.cancel(cancelled.id)
    assert (await waiting).status == "cancelled"
    await broker.delete(cancelled.id)
    with pytest.raises(GenerationGone):
        await broker.wait(cancelled.id)
    with pytest.raises(GenerationNotFound):
        await broker.wait("gen_x")


async def test_events_have_their_data_and_their_text(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    writer = await Writer(broker.store.redis, generation.id).claim()
    await writer.append("Good ", "morning")
    await writer.finish()
    events = [event async for event in broker.follow(generation.id)]
    assert [event.text for event in events] == ["", "", "Good ", "morning", ""]
    assert events[0].json["model"] == "m"
    assert events[1].json == {"attempt": 1, "upstream": "default"}
    assert events[2].json["choices"][0]["delta"]["content"] == "Good "
    assert events[-1].json["finish_reason"] == "stop"


async def test_a_generation_belongs_to_the_trace_of_the_application(broker: Broker) -> None:
    """The trace of the span around `enqueue`; without a span there is none."""
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        traced = await broker.enqueue(request_body())
    assert (await broker.get(traced.id)).trace == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert (await broker.get((await broker.enqueue(request_body())).id)).trace == ""


async def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line for any duration and any number of followers, which continue at their positions."""
    async with EmbeddedRedis(appendonly=True) as redis, connect(redis.url) as broker:
        generation = await broker.enqueue(request_body())
        writer = await Writer(broker.store.redis, generation.id).claim()
        await writer.append("before ")
        seen: list[list[str]] = [[] for _ in range(3)]

        async def follow(texts: list[str]) -> None:
            async for event in broker.follow(generation.id):
                texts.append(event.text)

        followers = [asyncio.create_task(follow(texts)) for texts in seen]
        await wait_until(lambda: all("before " in texts for texts in seen))
        with caplog.at_level(logging.WARNING):
            redis.kill()
            await wait_until(
                lambda: any(reader._backoff._next >= 0.4 for reader in broker.hub._readers)
            )  # after three attempts
            await redis.restart()
            await writer.append("after")
            await writer.finish()
            await asyncio.gather(*followers)
        assert ["".join(texts) for texts in seen] == ["before after"] * 3
        warnings = [record.getMessage() for record in caplog.records if record.name == "tokencast.reader"]
        assert len(warnings) == 1, warnings


def test_every_error_can_be_imported_from_the_package() -> None:
    public = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    internal = {
        "InvalidKey",
        "KeyExpired",
        "OperatorRequired",
        "ReadOnlyKey",
    }  # raised only by the gateway, about its keys
    assert public - internal <= set(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)

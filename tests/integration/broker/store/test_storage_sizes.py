"""The memory of a generation in Redis is bounded for any caller and any upstream."""

from __future__ import annotations

import json

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import BodyTooLarge, InvalidRequest, Misconfigured
from broker.ids import shard_of
from broker.request.body import MAX_TTL_SECONDS
from broker.settings.loading import load
from broker.settings.settings import Settings
from broker.store import keys
from tests.support import Writer, gateway, request_body, worker
from worker.appender import PIPELINE_BYTES
from worker.simulator.text import pieces

DEFAULT = Settings()  # pyright: ignore[reportCallIssue]


async def test_ten_megabytes_of_output_end_at_eight(own_redis: EmbeddedRedis, sim: str) -> None:
    """With default settings: the delivered part is kept, and the rest never reaches Redis."""
    async with connect(own_redis.url) as broker, worker(own_redis.url, sim):
        execute = broker.store.redis.execute
        before = int(await memory(broker))
        created = await broker.enqueue(request_body("[[sim seed=5 length=45000 speed=0]]", model="sim"))
        events = [event async for event in broker.follow(created.id)]
        size = sum(len(event.data) for event in events)
        assert json.loads(events[-1].data)["error"]["code"] == "output_too_large"
        assert [event.name for event in events].count("reset") == 0
        assert DEFAULT.max_output < size < DEFAULT.max_output + PIPELINE_BYTES
        text = (await broker.get(created.id)).text
        assert "".join(pieces(5, 45_000)).startswith(text)
        assert len(await execute("HGET", keys.meta(created.id), "res")) < DEFAULT.max_output
        assert int(await memory(broker)) - before < 4 * DEFAULT.max_output


async def memory(broker: Broker) -> str:
    info = (await broker.store.redis.execute("INFO", "memory")).decode()
    return next(line.partition(":")[2] for line in info.splitlines() if line.startswith("used_memory:"))


async def test_a_body_is_bounded_over_http_and_in_the_python_api(redis: EmbeddedRedis, broker: Broker) -> None:
    body = request_body("x" * DEFAULT.max_body)
    with pytest.raises(BodyTooLarge):
        await broker.enqueue(body)
    async with gateway(redis.url) as api:
        for route in ("/v1/generations", "/v1/chat/completions"):
            refused = await api.http.post(route, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "metadata", [{str(n): "" for n in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}, {"k": {"nested": "v"}}]
)
async def test_metadata_is_bounded(broker: Broker, metadata: dict[str, str]) -> None:
    """It is contained in every list and every activity event."""
    with pytest.raises(InvalidRequest):
        await broker.enqueue(request_body(metadata=metadata))


async def test_activity_keeps_a_bounded_history(redis: EmbeddedRedis, broker: Broker) -> None:
    """About two thousand events per shard; the oldest are trimmed."""
    first = await broker.enqueue(request_body(), idempotency_key="0")
    name = keys.activity(shard_of(first.id))
    for n in range(2600):
        await broker.store.redis.execute("XADD", name, "*", "tn", "default", "g", "x", "e", "x", "d", str(n))
    await broker.cancel(first.id)
    assert 2000 <= await broker.store.redis.execute("XLEN", name) < 2300


async def test_an_ended_generation_leaves_nothing_in_the_queue(redis: EmbeddedRedis, broker: Broker) -> None:
    """No tickets, no bell entries above their limit, and no entry for the reaper."""
    queue, waiting = broker.queue.redis, await broker.queue.depth()
    for n in range(40):
        created = await broker.enqueue(request_body())
        if n % 2:
            await broker.cancel(created.id)
        else:
            await broker.delete(created.id)
        assert await broker.queue.depth() == waiting
        for name in await queue.execute("KEYS", "*"):
            if b"{" not in name:
                assert created.id.encode() not in (await queue.execute("DUMP", name) or b"")
        assert await broker.store.redis.execute("ZSCORE", keys.live(shard_of(created.id)), created.id) is None
    for _ in range(70):
        await broker.enqueue(request_body())
    assert await queue.execute("LLEN", keys.BELL) == 64


async def test_the_retention_is_limited_to_the_lifetime_of_the_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_RETENTION", str(MAX_TTL_SECONDS + 1))
    with pytest.raises(Misconfigured, match="TOKENCAST_RETENTION"):
        load(Settings)
    monkeypatch.setenv("TOKENCAST_RETENTION", str(MAX_TTL_SECONDS))
    assert load(Settings).retention == MAX_TTL_SECONDS


async def test_indexes_outlive_the_longest_lifetime_of_a_generation(broker: Broker) -> None:
    created = await broker.enqueue(request_body(ttl_seconds=MAX_TTL_SECONDS))
    writer = await Writer(broker.store.redis, created.id).claim()
    await writer.finish()
    execute = broker.store.redis.execute
    for status in (None, "completed"):
        index = await execute("TTL", keys.index(shard_of(created.id), "default", status))
        assert index > await execute("TTL", keys.meta(created.id))

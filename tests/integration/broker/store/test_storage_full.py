"""A full Redis, on both engines: writes that free memory succeed; others wait and then fail with an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import StorageUnavailable
from broker.ids import shard_of
from broker.redis.client import Redis
from broker.store import keys
from broker.store.commands import REAP, TOUCH, lifecycle_keys
from broker.webhooks.outbox import Attempt
from tests.support import REAPER_OBSERVATION, Frame, Writer, gateway, gather, request_body, texts, wait_until, worker
from worker.simulator.text import pieces


@pytest.fixture
async def broker(engine: str) -> AsyncGenerator[Broker, None]:
    async with EmbeddedRedis(binary=engine) as redis, connect(redis.url) as connected:
        yield connected


@asynccontextmanager
async def full(redis: Redis) -> AsyncGenerator[None, None]:
    await redis.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        await redis.execute("CONFIG", "SET", "maxmemory", 0)


async def running(broker: Broker) -> Writer:
    writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
    await writer.append("a ", "b ")
    return writer


async def test_every_ending_is_written_to_a_full_redis(broker: Broker) -> None:
    """By any writer, with its status, and without entries left for the reaper."""
    redis = broker.store.redis
    finished, cancelled, deleted, exhausted = [await running(broker) for _ in range(4)]
    lost = keys.meta(exhausted.gid)
    await redis.execute("HSET", lost, "le", 1, "x", 2)
    await redis.execute("ZADD", keys.live(shard_of(exhausted.gid)), 1, exhausted.gid)
    async with full(redis):
        assert await finished.finish() == b"OK"
        assert (await broker.cancel(cancelled.gid)).status == "cancelled"
        await broker.delete(deleted.gid)
        verdict = await redis.run(REAP, lifecycle_keys(exhausted.gid), [exhausted.gid, 5, 3, *REAPER_OBSERVATION])
        assert verdict[0] == b"FAILED"
        for writer, status in ((finished, "completed"), (cancelled, "cancelled"), (exhausted, "failed")):
            generation = await broker.get(writer.gid)
            assert (generation.status, generation.text) == (status, "a b ")
            assert await redis.execute("ZSCORE", keys.live(shard_of(writer.gid)), writer.gid) is None
            assert 0 < await redis.execute("PTTL", keys.log(writer.gid)) <= 86_400_000


async def test_a_webhook_passes_too(broker: Broker) -> None:
    """It is announced with the ending, and each step of its delivery succeeds."""
    redis, (finished, cancelled) = broker.store.redis, [await running(broker) for _ in range(2)]
    webhook = '{"url":"https://hooks.example.com/","events":["completed","cancelled"]}'
    for writer in (finished, cancelled):
        await redis.execute("HSET", keys.meta(writer.gid), "wh", webhook)
    async with full(redis):
        assert await finished.finish() == b"OK"
        await broker.cancel(cancelled.gid)
        hosts = await broker.outbox.due_hosts(broker.outbox.groups[0])
        entries = [entry for host in hosts for entry in await broker.outbox.take(host, 2, None)]
        assert {entry.gid for entry in entries} == {finished.gid, cancelled.gid}
        for entry in entries:
            assert await broker.outbox.record(entry, Attempt(1.0, 0.1, 500, "refused"), 60.0, None) == "OK"
            assert await broker.outbox.redeliver(entry.gid, 1)
    assert await broker.outbox.waiting() == 2


async def test_writes_that_need_memory_are_refused_and_leave_nothing(broker: Broker) -> None:
    redis = broker.store.redis
    writer, waiting = await running(broker), await broker.enqueue(request_body())
    before = await redis.execute("DBSIZE")
    async with full(redis):
        for refused in (
            broker.enqueue(request_body()),
            broker.enqueue(request_body(), idempotency_key="k"),
            Writer(redis, waiting.id).claim(),
            writer.append("c "),
        ):
            with pytest.raises(StorageUnavailable, match="maxmemory"):
                await refused
        assert await redis.execute("DBSIZE") == before
    assert await writer.append("c ") == b"OK"
    await Writer(redis, waiting.id).claim()
    assert (await broker.enqueue(request_body(), idempotency_key="k")).status == "queued"


async def test_leases_are_renewed_in_a_full_redis(broker: Broker) -> None:
    """Otherwise every generation would restart as soon as memory is free, and be paid for twice."""
    redis, writer = broker.store.redis, await running(broker)
    await redis.execute("HSET", keys.meta(writer.gid), "le", 1)
    touched = [keys.meta(writer.gid), keys.log(writer.gid), keys.live(shard_of(writer.gid))]
    async with full(redis):
        assert (await redis.run(TOUCH, touched, [writer.gid, writer.own, 60_000]))[0] == b"OK"
    now = int((await redis.execute("TIME"))[0]) * 1000
    assert int(await redis.execute("HGET", keys.meta(writer.gid), "le")) > now
    assert float(await redis.execute("ZSCORE", keys.live(shard_of(writer.gid)), writer.gid)) > now


async def test_readers_get_the_ending_and_the_system_recovers(engine: str, sim: str) -> None:
    """A gateway and a worker with a running generation, a full Redis, and a new generation afterwards."""
    quick = {"TOKENCAST_LEASE": "2"}
    async with (
        EmbeddedRedis(binary=engine) as redis,
        connect(redis.url) as broker,
        gateway(redis.url, **quick) as api,
        worker(redis.url, sim, **quick),
    ):
        created = await api.create(request_body("[[sim seed=3 length=4000 speed=40]]", model="sim"))
        silent = await api.create(request_body("[[sim fault=stall at=3 speed=0]]", model="sim"))
        async with aclosing(api.follow(created["id"])) as stream:
            frames = [await until_text(stream)]
            await wait_until(lambda: has_text(broker, silent["id"]))
            async with full(broker.store.redis):
                frames += [frame async for frame in stream if not frame.comment]
                assert [frame.event for frame in frames].count("reset") == 0
                assert frames[-1].json["error"]["code"] == "storage_full"
                stored = await api.get(created["id"])
                assert (stored["status"], stored["attempt"]) == ("failed", 1)
                assert stored["text"] == texts(frames)
                assert "".join(pieces(3, 4000)).startswith(stored["text"])
                for route in ("/v1/generations", "/v1/chat/completions"):
                    refused = await api.http.post(route, json=request_body(model="sim"))
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
                    assert int(refused.headers["retry-after"]) >= 1
                    assert refused.headers.get("x-should-retry") != "false"
                cancelled = await api.http.post(f"/v1/generations/{silent['id']}/cancel")
                assert cancelled.json()["status"] == "cancelled"
            assert cancelled.json()["attempt"] == 1, "the lease was lost"
        again = await api.create(request_body("[[sim seed=4 length=20 speed=0]]", model="sim"))
        (rest,) = await gather(asyncio.create_task(api.events(again["id"])))
        assert [frame.event for frame in rest][-1] == "completed"
        assert texts(rest) == "".join(pieces(4, 20))


async def until_text(stream: AsyncGenerator[Frame, None]) -> Frame:
    async for frame in stream:
        if texts([frame]):
            return frame
    raise AssertionError("the stream ended without text")


async def has_text(broker: Broker, gid: str) -> bool:
    return bool((await broker.get(gid)).text)

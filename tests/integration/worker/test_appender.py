"""The appender with a real server that loses data, refuses, stalls and disconnects: each event once and in order."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.events import CHUNK, COMPLETED, FAILED
from broker.ids import START
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.commands import APPEND, FINISH
from tests.servers.redis_proxy import RedisProxy, redis_proxy
from tests.support import DEADLINE, begun, in_background, request_body, wait_until
from worker import appender as appender_module
from worker.appender import Appender
from worker.attempt import Attempt, AttemptEnded, Ending
from worker.claims import Claim, claim
from worker.upstream.chunks import Chunk


def settings(url: str, **more: Any) -> Settings:
    return Settings(REDIS_URL=url, **more)  # pyright: ignore[reportCallIssue]


def chunks(*texts: str) -> list[Chunk]:
    return [
        Chunk(CHUNK, json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode(), 1, (), None)
        for text in texts
    ]


def ending(status: str = "completed", data: bytes = b'{"finish_reason":"stop","usage":null}') -> Ending:
    kind = COMPLETED if status == "completed" else FAILED
    error = b"" if status == "completed" else b'{"code":"x"}'
    return Ending(kind, status, data, "stop", b'{"total_tokens":1}', error, b"[]")


@asynccontextmanager
async def appending(url: str, **more: Any) -> AsyncGenerator[Appender, None]:
    appender = Appender(settings(url, **more))
    async with in_background(appender.run()):
        await appender.ready()
        yield appender


async def claimed(broker: Broker, **more: Any) -> Claim:
    generation = await broker.enqueue(request_body())
    redis = broker.store.redis
    outcome = await claim(redis, generation.id, settings(redis.url, **more), "default")
    assert isinstance(outcome, Claim)
    return await begun(redis, outcome)


async def log_of(broker: Broker, gid: str) -> list[tuple[int, bytes]]:
    """`(seq, content or type)` of each event of the newest attempt."""
    events = [event async for event in broker.store.read(gid, START)]
    newest = max(event.cursor.attempt for event in events)
    return [(e.cursor.seq, content(e.data) or e.type) for e in events if e.cursor.attempt == newest]


def content(data: bytes) -> bytes | None:
    choices = json.loads(data).get("choices")
    return choices[0]["delta"]["content"].encode() if choices else None


def expected(texts: Sequence[str], *last: bytes) -> list[tuple[int, bytes]]:
    return list(enumerate([b"st", *(text.encode() for text in texts), *last]))


async def acknowledged(attempt: Attempt) -> None:
    await wait_until(lambda: attempt.acked == attempt.count)


@pytest.fixture
async def proxy(redis: EmbeddedRedis) -> AsyncGenerator[RedisProxy, None]:
    async with redis_proxy(redis.url) as started:
        yield started


async def test_pushed_chunks_are_in_the_log_once_and_in_order(redis: EmbeddedRedis, broker: Broker) -> None:
    texts = [f"t{i}" for i in range(3000)]
    async with appending(redis.url) as appender:
        attempt = appender.open(await claimed(broker))
        for at in range(0, len(texts), 7):
            attempt.push(chunks(*texts[at : at + 7]))
            if at % 70 == 0:
                await asyncio.sleep(0)
        await attempt.finish(ending())
    assert await log_of(broker, attempt.claim.gid) == expected(texts, b"ok")
    generation = await broker.get(attempt.claim.gid)
    assert generation.status == "completed"
    assert generation.usage == {"total_tokens": 1}
    assert generation.first_token_at is not None


async def test_events_larger_than_one_call_are_appended_one_by_one(redis: EmbeddedRedis, broker: Broker) -> None:
    texts = ["x" * 900_000, "a", "y" * 400_000, "b"]
    async with appending(redis.url) as appender:
        attempt = appender.open(await claimed(broker))
        attempt.push(chunks(*texts))
        await attempt.finish(ending())
    assert await log_of(broker, attempt.claim.gid) == expected(texts, b"ok")


async def test_an_append_with_a_lost_reply_is_not_duplicated(proxy: RedisProxy, broker: Broker) -> None:
    async with appending(proxy.url) as appender:
        attempt = appender.open(await claimed(broker))
        for turn in range(4):
            proxy.lose_reply_to = APPEND.sha.encode()
            attempt.push(chunks(f"a{turn}", f"b{turn}"))
            await acknowledged(attempt)
        proxy.lose_reply_to = FINISH.sha.encode()
        await attempt.finish(ending())
    assert proxy.lost == 5
    texts = [f"{letter}{turn}" for turn in range(4) for letter in "ab"]
    assert await log_of(broker, attempt.claim.gid) == expected(texts, b"ok")


@pytest.mark.parametrize("silent", [False, True])
async def test_events_that_redis_lost_are_sent_again(redis: EmbeddedRedis, broker: Broker, silent: bool) -> None:
    """A failover that loses the tail of a log is noticed by the next append, or by the next touch if nothing is
    appended."""
    execute = broker.store.redis.execute
    async with appending(redis.url, lease=3) as appender:
        attempt = appender.open(await claimed(broker, lease=3))
        names = [keys.meta(attempt.claim.gid), keys.log(attempt.claim.gid)]
        attempt.push(chunks("a", "b"))
        await acknowledged(attempt)
        dumps = [await execute("DUMP", name) for name in names]
        attempt.push(chunks("c", "d"))
        await acknowledged(attempt)
        for name, dump in zip(names, dumps, strict=True):
            await execute("RESTORE", name, 7_200_000, dump, "REPLACE")
        if not silent:
            attempt.push(chunks("e"))
        texts = ["a", "b", "c", "d"] + ([] if silent else ["e"])

        async def whole() -> bool:
            return await log_of(broker, attempt.claim.gid) == expected(texts)

        await wait_until(whole)


async def test_an_attempt_can_be_discarded_at_any_moment(redis: EmbeddedRedis, broker: Broker) -> None:
    """Also between the calls that detect a loss and put it back: a reply for a discarded attempt once ended the
    worker."""
    async with appending(redis.url) as appender:
        for turns in range(60):
            attempt = appender.open(await claimed(broker))
            await broker.store.redis.execute("DEL", keys.meta(attempt.claim.gid), keys.log(attempt.claim.gid))
            attempt.push(chunks("a"))
            for _ in range(turns):
                await asyncio.sleep(0)
            appender.discard(attempt)
        attempt = appender.open(await claimed(broker))
        await attempt.finish(ending())
    assert await log_of(broker, attempt.claim.gid) == expected("", b"ok")


async def test_an_ending_that_redis_lost_is_sent_again_after_a_reconnect(proxy: RedisProxy, broker: Broker) -> None:
    execute = broker.store.redis.execute
    async with appending(proxy.url) as appender:
        attempt = appender.open(await claimed(broker))
        gid = attempt.claim.gid
        attempt.push(chunks("a"))
        await acknowledged(attempt)
        dumps = [(name, await execute("DUMP", name)) for name in (keys.meta(gid), keys.log(gid))]
        attempt.push(chunks("b"))
        await attempt.finish(ending())
        await proxy.close()
        for name, dump in dumps:
            await execute("RESTORE", name, 7_200_000, dump, "REPLACE")
        await proxy.open()
        await wait_until(lambda: ended(broker, gid))
    assert await log_of(broker, gid) == expected(["a", "b"], b"ok")


async def ended(broker: Broker, gid: str) -> bool:
    return (await broker.get(gid)).ended


async def test_lost_scripts_are_loaded_again(redis: EmbeddedRedis, broker: Broker) -> None:
    async with appending(redis.url) as appender:
        attempt = appender.open(await claimed(broker))
        for text in "abc":
            await broker.store.redis.execute("SCRIPT", "FLUSH")
            attempt.push(chunks(text))
            await acknowledged(attempt)
        await broker.store.redis.execute("SCRIPT", "FLUSH")
        await attempt.finish(ending())
    assert await log_of(broker, attempt.claim.gid) == expected("abc", b"ok")


async def test_events_wait_while_redis_is_unreachable(proxy: RedisProxy, broker: Broker, caplog: Any) -> None:
    async with appending(proxy.url) as appender:
        attempt = appender.open(await claimed(broker))
        attempt.push(chunks("a"))
        await acknowledged(attempt)
        await proxy.close()
        attempt.push(chunks("b", "c"))
        await wait_until(lambda: not appender.connected)
        attempt.push(chunks("d"))
        await proxy.open()
        await attempt.finish(ending())
    assert await log_of(broker, attempt.claim.gid) == expected("abcd", b"ok")
    assert "events wait" in caplog.text


async def test_a_producer_far_ahead_of_redis_waits(proxy: RedisProxy, broker: Broker) -> None:
    async with appending(proxy.url) as appender:
        attempt = appender.open(await claimed(broker))
        proxy.pause()
        pushed = 0
        while not attempt.congested:
            attempt.push(chunks("x" * 10_000))
            pushed += 1
            await asyncio.sleep(0)
        assert 1 << 20 <= attempt.pending_bytes < 2 << 20
        waiting = asyncio.create_task(attempt.drain())
        await asyncio.sleep(0)
        assert not waiting.done()
        proxy.resume()
        await asyncio.wait_for(waiting, DEADLINE)
        await attempt.finish(ending())
    assert len(await log_of(broker, attempt.claim.gid)) == pushed + 2


async def interrupted(attempt: Attempt) -> str:
    """The reason for which a waiting producer is interrupted."""
    with pytest.raises(AttemptEnded) as caught:
        async with attempt.run_until(asyncio.get_running_loop().time() + DEADLINE):
            await asyncio.Event().wait()
    return caught.value.reason


async def test_external_endings_reach_an_attempt_while_the_upstream_is_silent(
    redis: EmbeddedRedis, broker: Broker
) -> None:
    execute = broker.store.redis.execute
    async with appending(redis.url) as appender:
        cancelled, deleted, fenced, expired = [appender.open(await claimed(broker)) for _ in range(4)]
        await broker.cancel(cancelled.claim.gid)
        await broker.delete(deleted.claim.gid)
        await execute("HSET", keys.meta(fenced.claim.gid), "own", "another owner")
        await execute("DEL", keys.meta(expired.claim.gid))
        reasons = await asyncio.gather(*map(interrupted, (cancelled, deleted, fenced, expired)))
        assert reasons == ["CLOSED", "GONE", "FENCED", "GONE"]
        for attempt in (cancelled, deleted, fenced, expired):
            with pytest.raises(AttemptEnded):
                await attempt.finish(ending())


async def test_a_waiting_finish_is_refused_if_another_owner_ended_the_generation(
    proxy: RedisProxy, broker: Broker
) -> None:
    async with appending(proxy.url) as appender:
        attempt = appender.open(await claimed(broker))
        await proxy.close()
        finishing = asyncio.create_task(attempt.finish(ending()))
        await broker.store.redis.execute("HSET", keys.meta(attempt.claim.gid), "own", "another owner")
        await proxy.open()
        with pytest.raises(AttemptEnded, match="FENCED"):
            await asyncio.wait_for(finishing, DEADLINE)


async def test_an_output_above_the_limit_fails_and_keeps_its_events(redis: EmbeddedRedis, broker: Broker) -> None:
    async with appending(redis.url, max_output=1024) as appender:
        attempt = appender.open(await claimed(broker))
        sent = 0
        while attempt.ended is None:
            attempt.push(chunks("x" * 200))
            sent += 1
            await wait_until(lambda: attempt.acked == attempt.count or attempt.ended)
        attempt.push(chunks("late"))
        with pytest.raises(AttemptEnded, match="TOOBIG"):
            await attempt.finish(ending())
        attempt.drop_unsent()
        await attempt.finish(ending("failed", b'{"error":{}}'))
    log = await log_of(broker, attempt.claim.gid)
    assert [seq for seq, _ in log] == list(range(sent + 2))
    assert log[-1][1] == b"f"
    assert (await broker.get(attempt.claim.gid)).status == "failed"


async def test_events_wait_while_redis_is_full(redis: EmbeddedRedis, broker: Broker) -> None:
    execute = broker.store.redis.execute
    async with appending(redis.url) as appender:
        attempt = appender.open(await claimed(broker))
        await execute("CONFIG", "SET", "maxmemory", 1)
        try:
            attempt.push(chunks("a"))
            await wait_until(lambda: attempt.refused_since is not None)
            assert await log_of(broker, attempt.claim.gid) == expected("")
        finally:
            await execute("CONFIG", "SET", "maxmemory", 0)
        await attempt.finish(ending())
    assert await log_of(broker, attempt.claim.gid) == expected("a", b"ok")


async def test_a_redis_that_stays_full_accepts_the_ending(
    redis: EmbeddedRedis, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender_module, "STORAGE_FULL_TIMEOUT", 0.3)
    execute = broker.store.redis.execute
    async with appending(redis.url) as appender:
        attempt = appender.open(await claimed(broker))
        attempt.push(chunks("a"))
        await acknowledged(attempt)
        await execute("CONFIG", "SET", "maxmemory", 1)
        try:
            attempt.push(chunks("b"))
            assert await interrupted(attempt) == "FULL"
            attempt.push(chunks("late"))
            attempt.drop_unsent()
            await attempt.finish(ending("failed", b'{"error":{}}'))
        finally:
            await execute("CONFIG", "SET", "maxmemory", 0)
    assert await log_of(broker, attempt.claim.gid) == expected("ab", b"f")


async def test_a_busy_attempt_keeps_its_lease(redis: EmbeddedRedis, broker: Broker) -> None:
    """An append does not renew the lease, so a generation without pauses is also touched."""
    async with appending(redis.url, lease=1) as appender:
        attempt = appender.open(await claimed(broker, lease=1))
        first = int(await broker.store.redis.execute("HGET", keys.meta(attempt.claim.gid), "le"))
        until = time.monotonic() + DEADLINE
        while int(await broker.store.redis.execute("HGET", keys.meta(attempt.claim.gid), "le")) < first + 1000:
            attempt.push(chunks("x"))
            assert time.monotonic() < until
            await asyncio.sleep(0.005)
        assert attempt.ended is None
        await attempt.finish(ending())


async def test_an_append_that_redis_always_refuses_ends_the_attempt(redis: EmbeddedRedis, broker: Broker) -> None:
    execute = broker.store.redis.execute
    async with appending(redis.url) as appender:
        attempt, other = [appender.open(await claimed(broker)) for _ in range(2)]
        log, aside = keys.log(attempt.claim.gid), keys.log(attempt.claim.gid) + ":aside"
        await execute("RENAME", log, aside)
        await execute("SET", log, secrets.token_hex(), "EX", 60)
        attempt.push(chunks("a"))
        other.push(chunks("a"))
        assert await interrupted(attempt) == "ERROR"
        await other.finish(ending())
        await execute("RENAME", aside, log)
        attempt.drop_unsent()
        await attempt.finish(ending("failed", b'{"error":{}}'))
    assert (await broker.get(other.claim.gid)).status == "completed"

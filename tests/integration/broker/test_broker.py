"""The Python API on a real server: `connect`, `enqueue`, `follow`, `get`, `cancel`."""

from __future__ import annotations

import asyncio

import pytest

from broker import Broker, Event, GapFound, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import (
    GenerationGone,
    GenerationNotFound,
    IdempotencyConflict,
    InvalidCursor,
    InvalidRequest,
    Misconfigured,
    StorageUnavailable,
)
from broker.queue import commands
from broker.queue.commands import UpstreamLimits
from broker.queue.tickets import granted_name
from broker.settings.settings import Settings
from broker.store import keys as names
from tests.support import Writer, gather, request_body, ticket_of, wait_until


async def everything(broker: Broker, gid: str, after: str = "0-0") -> list[Event]:
    return [event async for event in broker.follow(gid, after)]


async def test_enqueue_follow_get(broker: Broker) -> None:
    generation = await broker.enqueue(request_body(metadata={"order": "17"}))
    assert (generation.status, generation.attempt, str(generation.cursor)) == ("queued", 0, "0-1")
    follower = asyncio.create_task(everything(broker, generation.id))
    writer = await Writer(broker.store.redis, generation.id).claim()
    await writer.append("Hello", ", ")
    assert (await broker.get(generation.id)).text == "Hello, "
    await writer.append("world")
    partial = await broker.get(generation.id)
    assert (partial.text, partial.status, partial.choices[0]["finish_reason"]) == ("Hello, world", "in_progress", None)
    await writer.finish()
    (events,) = await gather(follower)
    assert [event.name for event in events] == ["created", "started", "chunk", "chunk", "chunk", "completed"]
    assert await everything(broker, generation.id) == events
    assert await everything(broker, generation.id, str(events[3].cursor)) == events[4:]
    assert await everything(broker, generation.id, str(events[-1].cursor)) == []
    assert (await broker.get(generation.id)).metadata == {"order": "17"}


async def test_a_text_that_redis_has_lost_is_not_kept(broker: Broker) -> None:
    """A server that went back, as after a failover, has less than this process has read before."""
    redis, gid = broker.store.redis, (await broker.enqueue(request_body())).id
    writer = await Writer(redis, gid).claim()
    await writer.append("kept ")
    earlier = {name: await redis.execute("DUMP", name) for name in (names.meta(gid), names.log(gid))}
    await writer.append("lost")
    assert (await broker.get(gid)).text == "kept lost"
    for name, value in earlier.items():
        await redis.execute("RESTORE", name, 60_000, value, "REPLACE")
    assert (await broker.get(gid)).text == "kept "
    assert (await broker.cancel(gid)).text == "kept "
    assert (await broker.get(gid)).text == "kept "


async def test_an_idempotency_key_gives_the_same_generation(broker: Broker) -> None:
    first, second = await gather(
        *(broker.enqueue(request_body(), idempotency_key="same") for _ in range(2))
    )  # even concurrently
    assert first.id == second.id
    assert (await broker.enqueue(request_body(), idempotency_key="other")).id != first.id
    with pytest.raises(IdempotencyConflict):
        await broker.enqueue(request_body("else"), idempotency_key="same")
    await broker.delete(first.id)
    assert (await broker.enqueue(request_body("else"), idempotency_key="same")).id != first.id


async def test_a_generation_has_one_ticket_without_its_prompt(broker: Broker) -> None:
    """The ticket contains the generation's id, and its job the tenant; the prompt is in no queue entry."""
    generation = await broker.enqueue(request_body("the canary sings"))
    queue = broker.queue.redis
    ticket = await ticket_of(broker.store.redis, generation.id)
    assert not await broker.queue.offer(ticket)  # a repetition adds nothing
    await commands.pull(
        queue,
        100,
        lease_ms=60_000,
        born="",
        tenant_running=0,
        other_tenants=b"",
        ageing_ms=60_000,
        upstreams=[UpstreamLimits("default", adaptive=False)],
    )
    job = await queue.execute("GET", names.arq_job(granted_name(generation.id, 1)))
    assert generation.id.encode() in job
    for name in await queue.execute("KEYS", "*"):
        if b"{" not in name:
            assert b"canary" not in await queue.execute("DUMP", name)
    await broker.cancel(generation.id)
    assert await queue.execute("ZSCORE", names.READY, granted_name(generation.id, 1)) is None
    assert await queue.execute("EXISTS", names.arq_job(granted_name(generation.id, 1))) == 0


async def test_invalid_calls_raise_specific_errors(broker: Broker) -> None:
    with pytest.raises(InvalidRequest):
        await broker.enqueue({"model": "m"})
    unknown = "gen_" + "0" * 10 + "10" + "0" * 22
    for gid in (unknown, "nonsense"):
        for action in (broker.get, broker.cancel, broker.delete):
            with pytest.raises(GenerationNotFound):
                await action(gid)
    generation = await broker.enqueue(request_body())
    with pytest.raises(InvalidCursor):
        await everything(broker, generation.id, "x")
    with pytest.raises(GenerationNotFound):
        await broker.get(generation.id, tenant="somebody-else")


async def test_followers_of_a_deleted_generation_get_gone(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    follower = asyncio.create_task(everything(broker, generation.id))
    await wait_until(lambda: broker.hub._feeds.get(generation.id))
    await broker.delete(generation.id)
    (events,) = await gather(follower)
    assert events[-1].name == "gone"
    with pytest.raises(GenerationGone):
        await broker.get(generation.id)


async def test_a_gap_raises_an_exception(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    writer = await Writer(broker.store.redis, generation.id).claim()
    await writer.append(*"abcdef")
    await writer.finish()
    await broker.store.redis.execute("XTRIM", names.log(generation.id), "MAXLEN", 2)
    with pytest.raises(GapFound) as caught:
        await everything(broker, generation.id)
    assert str(caught.value.found) == f"{writer.attempt}-6"


async def test_an_ended_generation_expires(broker: Broker) -> None:
    """Log and metadata live for `ttl_seconds` after the end; the id is remembered for an hour longer."""
    generation = await broker.enqueue(request_body(ttl_seconds=100))
    await broker.cancel(generation.id)
    redis = broker.store.redis
    assert 90_000 < await redis.execute("PTTL", names.log(generation.id)) <= 100_000
    assert 3_690_000 < await redis.execute("PTTL", names.meta(generation.id)) <= 3_700_000
    await redis.execute("DEL", names.log(generation.id))
    with pytest.raises(GenerationGone):
        await broker.get(generation.id)


async def test_scripts_are_loaded_again_after_a_script_flush(broker: Broker) -> None:
    generation = await broker.enqueue(request_body())
    await broker.store.redis.execute("SCRIPT", "FLUSH")
    assert (await broker.cancel(generation.id)).status == "cancelled"


async def test_an_unreachable_redis_raises_storage_unavailable() -> None:
    async with EmbeddedRedis() as redis, connect(redis.url) as broker:
        generation = await broker.enqueue(request_body())
        redis.kill()
        for action in (broker.get(generation.id), broker.enqueue(request_body()), broker.cancel(generation.id)):
            with pytest.raises(StorageUnavailable):
                await action


async def test_a_follower_continues_after_a_restart_of_redis(tmp_path) -> None:
    """Readers see a pause: Redis restores the log from its append-only file, and the reader continues at its
    position."""
    async with EmbeddedRedis(appendonly=True, dir=tmp_path) as redis, connect(redis.url) as broker:
        generation = await broker.enqueue(request_body())
        writer = await Writer(broker.store.redis, generation.id).claim()
        await writer.append("before ")
        seen: list[str] = []

        async def follow() -> None:
            async for event in broker.follow(generation.id):
                seen.append(event.name)

        follower = asyncio.create_task(follow())
        await wait_until(lambda: len(seen) == 3)
        redis.kill()
        await redis.restart()
        await wait_until(lambda: _appended(writer))
        await writer.finish()
        await gather(follower)
        assert seen == ["created", "started", "chunk", "chunk", "completed"]


async def _appended(writer: Writer) -> bool:
    try:
        return await writer.append("after") == b"OK"
    except StorageUnavailable:
        return False


async def test_a_lost_log_is_not_recreated_by_an_append(broker: Broker) -> None:
    """An append would otherwise create a log without a beginning and without a lifetime."""
    generation = await broker.enqueue(request_body())
    writer = await Writer(broker.store.redis, generation.id).claim()
    await writer.append("a ")
    await broker.store.redis.execute("DEL", names.log(generation.id))
    assert await writer.append("b ") == b"LOST"
    assert await writer.finish() == b"LOST"
    assert await broker.store.redis.execute("EXISTS", names.log(generation.id)) == 0


async def test_the_list_skips_expired_generations(broker: Broker) -> None:
    """An index outlives its members: pages are still full, and expired members are removed when they are found."""
    made = [(await broker.enqueue(request_body(), tenant="lister")).id for _ in range(9)]
    newest_first = sorted(made, reverse=True)
    dead = newest_first[1:5]
    await broker.store.redis.execute("DEL", *map(names.meta, dead))
    page, more = await broker.store.list("lister", limit=3)
    assert ([generation.id for generation in page], more) == ([newest_first[i] for i in (0, 5, 6)], True)
    page, more = await broker.store.list("lister", limit=3, after=page[-1].id)
    assert ([generation.id for generation in page], more) == (newest_first[7:], False)
    left = [names.index(gid[14:16], "lister", status) for gid in dead for status in (None, "queued")]
    members = [m.decode() for name in left for m in await broker.store.redis.execute("ZRANGE", name, 0, -1)]
    assert not set(members) & set(dead)


async def test_connect_with_a_url_ignores_the_environment(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment belongs to the program: Kubernetes sets such variables for a service of that name."""
    monkeypatch.setenv("PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("TOKENCAST_RETENTION", "never")
    monkeypatch.setenv("TOKENCAST_STREAMS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("TOKENCAST_API_KEYS_FILE", "/nowhere")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    async with connect(redis.url) as broker:
        generation = await broker.enqueue(request_body())
        assert (await broker.cancel(generation.id)).status == "cancelled"
    async with connect() as broker:
        assert broker.settings.logs_url == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "redis://:Hunter2#tail@127.0.0.1", "redis+cluster://127.0.0.1", ""])
async def test_connect_reports_an_invalid_url(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"^url: ") as caught:
        await connect(url).__aenter__()
    assert "Hunter2" not in str(caught.value)


async def test_connect_takes_a_url_or_settings(redis: EmbeddedRedis) -> None:
    with pytest.raises(TypeError):
        await connect(redis.url, settings=Settings()).__aenter__()

"""Connections to Redis: their number, and that none is leaked or used after it is dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import StorageUnavailable
from broker.fanout import reader
from broker.fanout import reader_pool as readers
from broker.redis import commands as pool_module
from broker.redis.client import Pool, Redis, connect_redis, open_pool
from broker.settings.settings import Settings
from tests.servers.redis_proxy import RedisProxy, redis_proxy
from tests.support import (
    Frame,
    Gateway,
    Writer,
    gateway,
    gather,
    request_body,
    texts,
    upstream_calls,
    wait_until,
    worker,
)
from worker import consumer as worker_main
from worker.simulator.text import pieces


@pytest.fixture
async def proxy(redis: EmbeddedRedis) -> AsyncGenerator[RedisProxy, None]:
    async with redis_proxy(redis.url) as started:
        yield started


def raise_file_limit() -> None:
    """The test opens as many sockets as the gateway; the usual limit is 1,024."""
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def clients(redis: Redis, command: str = "") -> dict[str, str]:
    """The clients of a server whose last command was `command`: id → address."""
    listed = (await redis.execute("CLIENT", "LIST", "TYPE", "normal")).decode().splitlines()
    fields = [dict(field.partition("=")[::2] for field in line.split()) for line in listed]
    return {each["id"]: each["addr"] for each in fields if each["cmd"].startswith(command)}


async def claimed(broker: Broker) -> Writer:
    generation = await broker.enqueue(request_body())
    return await Writer(broker.store.redis, generation.id).claim()


# --- number ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generations", [1, 100])
async def test_a_thousand_subscribers_need_few_connections(own_redis: EmbeddedRedis, generations: int) -> None:
    """One connection reads for a group of generations, regardless of subscribers; the pool stays within its maximum."""
    raise_file_limit()
    all_active = {"TOKENCAST_HEARTBEAT": "600"}  # seconds until a log counts as idle
    async with (
        gateway(own_redis.url, **all_active) as api,
        connect(own_redis.url) as broker,
        AsyncExitStack() as stack,
    ):
        writers = [await claimed(broker) for _ in range(generations)]
        host, _, port = api.url.removeprefix("http://").partition(":")
        streams: list[asyncio.StreamReader] = []
        writing: list[asyncio.StreamWriter] = []
        for number in range(1000):
            incoming, outgoing = await asyncio.open_connection(host, int(port))
            stack.callback(outgoing.transport.abort)
            writing.append(outgoing)  # the connection closes when its writer is collected
            gid = writers[number % generations].gid
            outgoing.write(f"GET /v1/generations/{gid}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            streams.append(incoming)
        await gather(*(stream.readuntil(b"event: started") for stream in streams))
        reading = await clients(broker.store.redis, "xread")
        assert len(reading) == connections(generations)
        assert len(await clients(broker.store.redis)) <= len(reading) + 64 + 10
        await gather(*(writer.append("word") for writer in writers))
        await gather(*(stream.readuntil(b"word") for stream in streams))
        assert await clients(broker.store.redis, "xread") == reading


def connections(active: int = 0, idle: int = 0) -> int:
    """The number of connections for these numbers of active and idle logs."""
    return -(-active // readers.ACTIVE_PER_READER) + -(-idle // readers.IDLE_PER_READER)


async def test_a_thousand_followed_logs_share_few_connections(redis: EmbeddedRedis) -> None:
    """Several logs are in one read, and the events of each arrive."""
    settings = Settings(REDIS_URL=redis.url, heartbeat=600)  # type: ignore[call-arg]
    async with connect(settings=settings) as broker, AsyncExitStack() as stack:
        writers = [await claimed(broker) for _ in range(1000)]
        feeds = [(await stack.enter_async_context(broker.hub.open(w.gid, "default")))[0] for w in writers]
        await wait_until(lambda: _count(broker.store.redis, "xread", connections(1000)))
        await gather(*(writer.append("word") for writer in writers))
        await gather(*(feed.wait_beyond(feed.tail) for feed in feeds if feed.tail.seq == 0))
        assert {feed.tail.seq for feed in feeds} == {1}
        assert len(await clients(broker.store.redis, "xread")) == connections(1000)


async def test_idle_logs_are_read_separately_from_active_ones(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event is lost while logs move between the groups."""
    monkeypatch.setattr(reader, "IDLE", 0.1)
    settings = Settings(REDIS_URL=redis.url, heartbeat=1)  # type: ignore[call-arg]
    async with connect_redis(redis.url) as watching, connect(settings=settings) as broker, AsyncExitStack() as stack:
        writers = [await claimed(broker) for _ in range(150)]
        feeds = [(await stack.enter_async_context(broker.hub.open(w.gid, "default")))[0] for w in writers]
        await wait_until(lambda: _count(watching, "xread", connections(idle=150)))

        async def append_to_some() -> bool:
            await gather(*(writer.append("word") for writer in writers[:20]))
            return await _count(watching, "xread", connections(active=20, idle=130))

        await wait_until(append_to_some)
        await gather(*(writer.append("word") for writer in writers))
        for writer, feed in zip(writers, feeds, strict=True):
            await wait_until(lambda writer=writer, feed=feed: feed.tail.seq == writer.n)
        await wait_until(lambda: _count(watching, "xread", connections(idle=150)))


async def _count(redis: Redis, command: str, expected: int) -> bool:
    return len(await clients(redis, command)) == expected


async def test_an_idle_log_keeps_its_connection(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For many consecutive blocking reads. The socket timeout is always longer than the block."""
    assert worker_main.BELL_TIMEOUT > worker_main.BELL_BLOCK
    assert reader.SLACK > 0
    monkeypatch.setattr(reader, "BLOCK_MS", 20)
    async with connect(redis.url) as broker:
        writer = await claimed(broker)
        async with aclosing(broker.follow(writer.gid)) as events:
            assert [(await anext(events)).name for _ in range(2)] == ["created", "started"]
            news = asyncio.create_task(anext(events))
            (before,) = await wait_until(lambda: clients(broker.store.redis, "xread"))
            reads = await _calls(broker.store.redis, "xread")
            await wait_until(lambda: _more_calls(broker.store.redis, "xread", reads + 20))
            assert before in await clients(broker.store.redis)
            await writer.append("a")
            assert (await news).name == "chunk"
    assert [record.message for record in caplog.records if record.name.startswith("tokencast")] == []


async def _calls(redis: Redis, command: str) -> int:
    for line in (await redis.execute("INFO", "commandstats")).splitlines():
        if line.startswith(f"cmdstat_{command}:calls=".encode()):
            return int(line.partition(b"=")[2].partition(b",")[0])
    return 0


async def _more_calls(redis: Redis, command: str, than: int) -> bool:
    return await _calls(redis, command) > than


# --- leaks -----------------------------------------------------------------------------------------------------


async def test_ten_thousand_cancelled_commands(redis: EmbeddedRedis) -> None:
    """None keeps its connection, and no later command gets the reply of a cancelled one."""
    pool = open_pool(redis.url, max_connections=8)
    try:
        for _ in range(100):
            commands = [asyncio.create_task(_ask(pool, number)) for number in range(100)]
            for command in commands:
                asyncio.get_running_loop().call_later(random.uniform(0, 0.02), command.cancel)
            for answer in await asyncio.gather(*commands, return_exceptions=True):
                assert answer is None or isinstance(answer, asyncio.CancelledError), answer
        assert in_use(pool) == 0
        await gather(*(_ask(pool, number) for number in range(100)))
        assert in_use(pool) == 0
    finally:
        await pool.close()


async def _ask(pool: Pool, number: int) -> None:
    if number % 2:
        assert await pool.execute("ECHO", number) == b"%d" % number
    else:
        assert await pool.pipeline([("ECHO", number), ("ECHO", "x")]) == [b"%d" % number, b"x"]


def in_use(pool: Redis) -> int:
    assert isinstance(pool, Pool)
    return len(pool.client.connection_pool._in_use_connections)


async def test_short_lived_subscribers_leak_no_connections(own_redis: EmbeddedRedis) -> None:
    """2,000 subscribers disconnect at random moments. Afterwards the gateway has few connections, all of them idle."""
    raise_file_limit()
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        writers = [await claimed(broker) for _ in range(20)]
        host, _, port = api.url.removeprefix("http://").partition(":")

        async def connect_and_leave(number: int) -> None:
            for turn in range(20):
                _, outgoing = await asyncio.open_connection(host, int(port))
                gid = writers[(number + turn) % 20].gid
                outgoing.write(f"GET /v1/generations/{gid}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                await asyncio.sleep(random.uniform(0, 0.03))
                outgoing.transport.abort()

        await gather(*map(connect_and_leave, range(100)))
        for writer in writers:
            await writer.append("a")
            await writer.finish()
        frames = await gather(*(api.events(writer.gid) for writer in writers))
        assert {texts(each) for each in frames} == {"a"}
        assert len(await clients(broker.store.redis)) <= 64 + 10


async def test_surplus_connections_of_the_pool_are_closed(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool opens as many as are needed at once and closes them when they are idle. The next command opens one."""
    monkeypatch.setattr(pool_module, "IDLE", 0.2)
    async with connect_redis(redis.url) as watching:
        pool = open_pool(redis.url)
        try:
            before = await clients(watching)
            waiting = [asyncio.create_task(pool.execute("BLPOP", f"nothing-{number}", 0)) for number in range(40)]
            await wait_until(lambda: _count(watching, "blpop", 40))
            for number in range(40):
                await watching.execute("RPUSH", f"nothing-{number}", "x")
            await gather(*waiting)
            await wait_until(lambda: _only(watching, before))
            assert await pool.execute("ECHO", "x") == b"x"
        finally:
            await pool.close()


async def test_a_reader_without_logs_closes_its_connection(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "IDLE", 0.1)
    monkeypatch.setattr(reader, "BLOCK_MS", 20)
    async with connect_redis(redis.url) as watching, connect(redis.url) as broker:
        for _ in range(2):
            writer = await claimed(broker)
            async with aclosing(broker.follow(writer.gid)) as events:
                assert [(await anext(events)).name for _ in range(2)] == ["created", "started"]
                news = asyncio.create_task(anext(events))
                await wait_until(lambda: _count(watching, "xread", 1))
                await writer.append("a")
                assert (await news).name == "chunk"
            await wait_until(lambda: _count(watching, "xread", 0))
    assert [record.message for record in caplog.records if record.name.startswith("tokencast")] == []


async def _only(redis: Redis, known: dict[str, str]) -> bool:
    return (await clients(redis)).keys() <= known.keys()


# --- dead connections -------------------------------------------------------------------------------------------


async def test_followers_do_not_notice_a_reset_during_a_blocked_read(proxy: RedisProxy, broker: Broker) -> None:
    async with connect(proxy.url) as through:
        writer = await claimed(broker)
        async with aclosing(through.follow(writer.gid)) as events:
            assert [(await anext(events)).name for _ in range(2)] == ["created", "started"]
            for number in range(5):
                news = asyncio.create_task(anext(events))
                await wait_until(lambda: clients(broker.store.redis, "xread"))
                proxy.reset()
                await writer.append("a")
                assert str((await news).cursor) == f"{writer.attempt}-{number + 1}"


async def test_a_demotion_during_a_blocked_read_ends_reads_from_the_replica(own_redis: EmbeddedRedis) -> None:
    """The read ends with UNBLOCKED. The server is not read while it is a replica; reading continues when it is a master
    again."""
    async with connect(own_redis.url) as broker:
        redis = broker.store.redis
        writer = await claimed(broker)
        async with aclosing(broker.follow(writer.gid)) as events:
            assert [(await anext(events)).name for _ in range(2)] == ["created", "started"]
            news = asyncio.create_task(anext(events))
            await wait_until(lambda: clients(redis, "xread"))
            await redis.execute("REPLICAOF", "127.0.0.1", 1)
            await wait_until(lambda: _count(redis, "xread", 0))
            with pytest.raises(StorageUnavailable, match="read only replica"):
                await writer.append("lost")
            assert await redis.unavailable_reason() == f"Redis cannot be used: 127.0.0.1:{own_redis.port} is a replica"
            raw = await asyncio.open_connection("127.0.0.1", own_redis.port)
            raw[1].write(b"REPLICAOF NO ONE\r\n")
            assert await raw[0].readline() == b"+OK\r\n"
            raw[1].close()
            await writer.append("a")
            assert (await news).name == "chunk"


async def test_half_open_connections_are_noticed_and_nothing_is_lost(own_redis: EmbeddedRedis, sim: str) -> None:
    """All connections of worker and gateway die silently, for logs and queue. Five seconds later the worker sends the
    lost events again, and readers continue."""
    async with (
        redis_proxy(own_redis.url) as proxy,
        gateway(proxy.url) as api,
        worker(proxy.url, sim),
    ):
        prompt = "[[sim seed={} length=200 speed=50 label=half]]"
        made = [await api.create(request_body(prompt.format(n), model="sim")) for n in range(3)]
        seen: list[list[Frame]] = [[] for _ in made]
        readers = [asyncio.create_task(_collect(api, each["id"], into)) for each, into in zip(made, seen, strict=True)]
        await wait_until(lambda: all(len(frames) > 20 for frames in seen))
        assert proxy.blackhole() > 3
        await gather(*readers)
        for number, frames in enumerate(seen):
            assert [frame.event for frame in frames].count("started") == 1
            assert frames[-1].event == "completed"
            assert texts(frames) == "".join(pieces(number, 200))
        assert len(await upstream_calls(sim, "half")) == 3
        after = await wait_until(lambda: _accepted(api))
        assert (await api.events(after))[-1].event == "completed"


async def _collect(api: Gateway, gid: str, into: list[Frame]) -> None:
    async for frame in api.follow(gid):
        if not frame.comment:
            into.append(frame)


async def _accepted(api: Gateway) -> str | None:
    """The id of a new generation, or None while the gateway still meets a dead connection."""
    answer = await api.http.post("/v1/generations", json=request_body("[[sim speed=0]]", model="sim"))
    return answer.json().get("id")


async def test_a_refused_pipeline_is_storage_unavailable(own_redis: EmbeddedRedis) -> None:
    """With the server's message but without the command, which can contain a secret."""
    async with connect_redis(own_redis.url) as redis:
        await redis.execute("CONFIG", "SET", "min-replicas-to-write", 1)
        for refused in (redis.execute("SET", "a", "canary"), redis.pipeline([("SET", "a", "canary")])):
            with pytest.raises(StorageUnavailable, match="Redis rejects the command: NOREPLICAS") as caught:
                await refused
            assert "canary" not in repr(caught.value.__cause__)

"""Sentinel with real Redis and Valkey processes: three sentinels, a master and its replicas.

During a failover, readers get the text without gaps, repetitions or resets, and the upstream is called once: the worker
sends the events that the new master lacks again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.ids import START, Cursor, entry_cursor
from broker.redis.client import connect_redis
from broker.redis.errors import NotMaster, RespError
from broker.store import keys
from tests.servers.redis_servers import ENGINES, SERVICE, SentinelGroup, Server, sentinel_group
from tests.support import Frame, Gateway, gateway, gather, request_body, texts, upstream_calls, wait_until, worker
from worker.simulator.text import pieces

LEASE = {"TOKENCAST_LEASE": "5"}


@asynccontextmanager
async def redis_or_valkey(engine: str, **options: Any) -> AsyncGenerator[SentinelGroup, None]:
    async with sentinel_group(ENGINES[engine], **options) as started:
        yield started


def check_whole(frames: list[Frame], seed: int, length: int) -> None:
    """Check for one attempt, every id once and in order, the upstream's text, and the ending."""
    names = [frame.event for frame in frames if frame.event]
    assert names[:2] == ["created", "started"]
    assert names[-1] == "completed"
    assert "reset" not in names
    ids = [frame.id for frame in frames if frame.event]
    attempt = str(ids[1]).partition("-")[0]
    assert ids == ["0-1", *(f"{attempt}-{seq}" for seq in range(len(ids) - 1))]
    assert texts(frames) == "".join(pieces(seed, length))


async def has_first_token(api: Gateway, gid: str) -> bool:
    return (await api.get(gid))["first_token_at"] is not None


async def test_readers_see_a_killed_master_as_a_pause(sim: str) -> None:
    async with (
        redis_or_valkey("redis") as servers,
        gateway(servers.url, **LEASE) as api,
        worker(servers.url, sim, **LEASE) as process,
    ):
        made = await generations(api, "killed", 8, 250)
        readers = [asyncio.create_task(api.events(gid)) for gid in made for _ in range(2)]
        await api.wait_for_subscribers(len(readers))
        await wait_until(lambda: has_first_token(api, made[-1]))
        old = await servers.master()
        old.kill()
        await servers.failed_over(old)
        for position, frames in enumerate(await gather(*readers)):
            check_whole(frames, position // 2, 250)
        assert len(await upstream_calls(sim, "killed")) == len(made)
        await wait_until(lambda: "events wait" in process.output)
        # Everything continues there, including the queue.
        (after,) = await generations(api, "after", 1, 5)
        check_whole(await api.events(after), 0, 5)


async def test_events_accepted_by_a_demoted_master_are_sent_again(sim: str) -> None:
    """For eight seconds after the failover the old master does not know of it and accepts writes that will be lost.
    Worker and gateway ask the sentinels in the meantime and change to the new one."""
    async with (
        redis_or_valkey("valkey") as servers,
        gateway(servers.url, **LEASE) as api,
        worker(servers.url, sim, **LEASE),
    ):
        made = await generations(api, "demoted", 4, 160, speed=20)
        readers = [asyncio.create_task(api.events(gid)) for gid in made for _ in range(2)]
        await api.wait_for_subscribers(len(readers))
        await wait_until(lambda: has_first_token(api, made[-1]))
        old, new = servers.servers
        await servers.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)

        async def losing() -> bool:
            return await new.role() == "master" and await newest(old, made[0]) > await newest(new, made[0])

        await wait_until(losing)
        for position, frames in enumerate(await gather(*readers)):
            check_whole(frames, position // 2, 160)
        assert len(await upstream_calls(sim, "demoted")) == len(made)
        await wait_until(lambda: has_no_readers(old))


PARTITION = (
    "user default on >client ~* &* +@all",
    "user watcher on >sentinel ~* &* +@all",
    "user copy on >replica +psync +replconf +ping",
    "masteruser copy",
    "masterauth replica",
    "min-replicas-to-write 1",
    "min-replicas-max-lag 2",
)


async def test_an_isolated_master_is_left_and_its_events_are_sent_again(sim: str) -> None:
    """Worker and gateway reach it, but sentinels and replicas do not: with `min-replicas-to-write` it refuses writes
    after two seconds, and both find the new master. All connections have passwords."""
    watcher = (f"sentinel auth-user {SERVICE} watcher", f"sentinel auth-pass {SERVICE} sentinel")
    setup = {"options": PARTITION, "sentinel_options": watcher, "password": "client", "replicas": 2}
    async with (
        redis_or_valkey("valkey", **setup) as servers,
        gateway(servers.url, **LEASE) as api,
        worker(servers.url, sim, **LEASE),
    ):
        made = await generations(api, "partition", 4, 120, speed=20)
        readers = [asyncio.create_task(api.events(gid)) for gid in made for _ in range(2)]
        await api.wait_for_subscribers(len(readers))
        await wait_until(lambda: has_first_token(api, made[-1]))
        old = await servers.master()
        for user in ("watcher", "copy"):
            await old.ask("ACL", "SETUSER", user, "off")
            await old.ask("CLIENT", "KILL", "USER", user)
        await servers.failed_over(old)
        with pytest.raises(RespError, match="NOREPLICAS"):
            await old.ask("SET", "x", "y", "EX", 60)
        for position, frames in enumerate(await gather(*readers)):
            check_whole(frames, position // 2, 120)
        assert len(await upstream_calls(sim, "partition")) == len(made)
        await wait_until(lambda: has_no_readers(old))


async def test_unreachable_sentinels_are_skipped_and_a_replica_is_refused(sim: str) -> None:
    async with redis_or_valkey("valkey") as servers:
        for sentinel in servers.sentinels[:2]:
            sentinel.kill()
        async with connect_redis(servers.url) as redis:
            assert await redis.unavailable_reason() is None
            servers.sentinels[2].kill()
            assert await redis.unavailable_reason() is None  # open connections are kept
        async with connect_redis(servers.url) as redis:
            assert await redis.unavailable_reason() == "Redis does not answer."
        replica = servers.servers[1]
        async with connect_redis(f"redis://127.0.0.1:{replica.port}") as redis:
            assert await redis.unavailable_reason() == f"Redis cannot be used: 127.0.0.1:{replica.port} is a replica"
            with pytest.raises(NotMaster):
                await redis.topology.open()


async def generations(api: Gateway, label: str, count: int, length: int, speed: int = 50) -> list[str]:
    """Create generations and return their ids. The n-th has the text of seed n."""
    prompt = f"[[sim seed={{}} length={length} speed={speed} label={label}]]"
    return [(await api.create(request_body(prompt.format(n), model="sim")))["id"] for n in range(count)]


async def newest(server: Server, gid: str) -> Cursor:
    """The newest cursor of a log on this server; START if it does not have the log yet."""
    entries = await server.ask("XREVRANGE", keys.log(gid), "+", "-", "COUNT", 1)
    return entry_cursor(entries[0][0]) if entries else START


async def has_no_readers(server: Server) -> bool:
    """A blocked read can outlive the last reader by its block time when its logs move to another connection."""
    clients = (await server.ask("CLIENT", "LIST", "TYPE", "normal")).splitlines()
    return not any(b"cmd=xread" in each and b"flags=b" in each for each in clients)

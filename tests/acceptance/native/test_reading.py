"""How a gateway reads logs: a new log immediately, and never more data than it needs to hold."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, Writer, gateway, gather, texts

PIECE = "x" * 5000
PIECES = 1000


async def test_a_new_log_is_read_during_a_blocking_read(api: Gateway, broker: Broker) -> None:
    """The running blocking read does not include the new log, and would block for five seconds."""
    quiet = (await api.create())["id"]
    async with aclosing(api.follow(quiet)) as waiting:
        await anext(waiting)
        for _ in range(3):
            gid = (await api.create())["id"]
            async with aclosing(api.follow(gid)) as stream:
                assert (await anext(stream)).event == "created"
                writer = await Writer(broker.store.redis, gid).claim()
                assert (await anext(stream)).event == "started"
                began = asyncio.get_running_loop().time()
                await writer.append("at once")
                assert texts([await anext(stream)]) == "at once"
                assert asyncio.get_running_loop().time() - began < 4.5
                await writer.finish()


async def test_the_memory_for_a_huge_replay_is_bounded(redis: EmbeddedRedis, broker: Broker) -> None:
    """Thirty subscribers read five megabytes each; the gateway holds a page, and a megabyte of cache."""
    async with gateway(redis.url, TOKENCAST_CACHE_BYTES=str(1 << 20)) as api:
        gid = (await api.create())["id"]
        writer = await Writer(broker.store.redis, gid).claim()
        for _ in range(0, PIECES, 50):
            await writer.append(*[PIECE] * 50)
        await writer.finish()
        assert len(texts(await api.events(gid))) == PIECES * len(PIECE)
        before = peak_memory(api)
        streams = await gather(*(replay_size(api, gid) for _ in range(30)))
        assert streams == [streams[0]] * 30
        assert streams[0] > PIECES * len(PIECE)
        assert peak_memory(api) - before < 50_000_000


async def replay_size(api: Gateway, gid: str) -> int:
    """The number of bytes of a complete replay, which are not kept."""
    async with api.http.stream("GET", f"/v1/generations/{gid}/events") as response:
        return sum([len(data) async for data in response.aiter_raw()])


def peak_memory(api: Gateway) -> int:
    """The largest resident size of the process, in bytes."""
    status = Path(f"/proc/{api.process.process.pid}/status").read_text("utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

"""The memory of a gateway: for each subscriber, followed generation, and finished generation in the cache."""

from __future__ import annotations

import asyncio

from tests.bench.native import Subscribers
from tests.bench.producing import Producer
from tests.bench.systems import Tokencast, memory_kib, tokencast
from tests.bench.table import Row

CHUNKS = 200
SETTLE = 1.0  # seconds until unused memory is freed


async def memory(quick: bool, runs: int) -> list[Row]:
    """Differences of the process's memory per generation. A frame of the log has about 300 bytes."""
    del runs  # memory varies little between runs
    count = 300 if quick else 1000
    followed = Row(f"memory · {count:,} followed, a subscriber and {CHUNKS} chunks each", "KiB per generation")
    cached = Row(f"memory · {count:,} finished, {CHUNKS} chunks each, read once", "KiB per generation")
    frames = Row(cached.load, "KiB of frames per generation")
    bounded = Row(f"{cached.load}, TOKENCAST_CACHE_BYTES=16 MiB", "MiB in total")
    async with tokencast() as system:
        before = memory_kib(system.pid)
        names = await system.begin(count)
        async with _following(system, names) as subscribers:
            await subscribers.ready()
            await _fill(system, names, end=False)
            await asyncio.sleep(SETTLE)
            followed.add("tokencast", (memory_kib(system.pid) - before) / count)
    for row, size in ((cached, 256), (bounded, 16)):
        async with tokencast(TOKENCAST_CACHE_BYTES=str(size << 20)) as system:
            names = await system.begin(count)
            await _fill(system, names, end=True)
            before = memory_kib(system.pid)
            async with Subscribers(system.port, [system.path(name) for name in names], count, arriving=16) as readers:
                got = await readers.result()
            await asyncio.sleep(SETTLE)
            grown = memory_kib(system.pid) - before
            row.add("tokencast", grown / count if row is cached else grown / 1024)
            if row is cached:
                frames.add("tokencast", got.bytes / count / 1024)
    return [followed, cached, frames, bounded]


def _following(system: Tokencast, names: list[str]) -> Subscribers:
    return Subscribers(system.port, [system.path(name) for name in names], len(names), idle=600, timeout=60)


async def _fill(system: Tokencast, names: list[str], *, end: bool) -> None:
    """Write the chunks. With `end=False` more events are announced than written, so that the generations do not end."""
    events = CHUNKS if end else CHUNKS * 1000
    async with Producer("append", system.redis.port, names, events=events, rate=0 if end else 50) as producer:
        await producer.ready()
        producer.go()
        if end:
            await producer.result()
        else:
            await asyncio.sleep(CHUNKS / 50)

"""Two hundred subscribers that read and two hundred that do not: the latter affect only themselves."""

from __future__ import annotations

import asyncio

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import connections, frames, linux, peers, resident_memory, unchunked
from tests.support import Writer, gateway, gather, texts, wait_until

pytestmark = linux

MIB = 1 << 20
READERS = 200
HEARTBEAT = b": hb\n\n"
WORDS = [f"{number} ".ljust(1000, "x") for number in range(2000)]


async def test_stalled_subscribers_affect_only_themselves(redis: EmbeddedRedis, broker: Broker) -> None:
    """Each reading subscriber gets every event once, in order, and the end. The memory for each of the others is
    constant instead of two megabytes (four hundred in all), and at the deadline their sockets are closed."""
    async with (
        gateway(redis.url, TOKENCAST_SEND_TIMEOUT="1", TOKENCAST_HEARTBEAT="1") as api,
        peers(api, READERS) as readers,
        peers(api, READERS, receive_buffer=4096) as stalled,
    ):
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        for one in (*readers, *stalled):
            one.get(f"/v1/generations/{writer.gid}/events", headers="Connection: close\r\n")
        for one in (*readers, *stalled):
            await one.until(b"\r\n\r\n")
        reading = [asyncio.create_task(reader.rest()) for reader in readers]
        before = most = resident_memory(api)

        async def write(words: list[str]) -> None:
            nonlocal most
            for at in range(0, len(words), 20):
                await writer.append(*words[at : at + 20])
                most = max(most, resident_memory(api))

        gone = {one.port for one in stalled}
        assert gone <= connections(api)
        await write(WORDS[:1000])
        await wait_until(lambda: gone.isdisjoint(connections(api)))
        assert {reader.port for reader in readers} <= connections(api)
        await write(WORDS[1000:])
        await writer.finish()
        streams = [unchunked(stream).replace(HEARTBEAT, b"") for stream in await gather(*reading)]
        after = resident_memory(api)
    assert all(stream == streams[0] for stream in streams)
    events = frames(streams[0])
    assert [frame.id for frame in events if frame.event == "chunk"] == [f"{writer.attempt}-{n}" for n in range(1, 2001)]
    assert texts(events) == "".join(WORDS)
    assert events[-1].event == "completed"
    assert most - before < 50 * MIB
    assert after - before < 50 * MIB
    print(f"resident memory: {before / MIB:.0f} MiB before, {most / MIB:.0f} at most, {after / MIB:.0f} after")


async def test_a_subscriber_that_pauses_gets_every_byte_in_order(redis: EmbeddedRedis, broker: Broker) -> None:
    """A full socket accepts part of a write. The rest of it is sent before newer data."""
    words = [f"{number} ".ljust(60_000, "x") for number in range(120)]
    async with (
        gateway(redis.url) as api,
        peers(api, 3, receive_buffer=4096) as readers,
    ):
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        for one in readers:
            one.get(f"/v1/generations/{writer.gid}/events", headers="Connection: close\r\n")
        for one in readers:
            await one.until(b"\r\n\r\n")
        for word in words:
            await writer.append(word)

        async def stalled() -> bool:
            return "tokencast_subscribers_stalled 3" in (await api.http.get("/metrics")).text

        await wait_until(stalled)
        reading = [asyncio.create_task(reader.rest()) for reader in readers]
        await writer.finish()
        for stream in await gather(*reading):
            assert texts(frames(unchunked(stream))) == "".join(words)

"""A gateway that is told to stop: every stream ends correctly at a moment of its own, and new requests are told to
reconnect."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import Answer, Peer, frames, peer, peers, unchunked
from tests.support import Gateway, Writer, gateway, gather, texts, wait_until


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


def retry_of(stream: bytes) -> int:
    """The reconnection time in ms of the last block of a stream."""
    name, _, value = frames(stream)[-1].raw.partition(b"\n")[0].partition(b": ")
    assert name == b"retry"
    return int(value)


async def test_streams_end_cleanly_at_different_times(redis: EmbeddedRedis, broker: Broker) -> None:
    """150 streams: no protocol error, within the drain, spread over it, each with a reconnection time of its own."""
    window = 5.0  # seconds; this process may be late by one or two of them
    async with gateway(redis.url, TOKENCAST_DRAIN=str(window)) as api, peers(api, 150) as readers:
        writer = await start_generation(api, broker)
        await writer.append("word")
        for reader in readers:
            reader.follow(writer.gid)
        for reader in readers:
            await reader.until(b'"word"')
            await reader.until(b"\r\n")

        async def end_of(reader: Peer) -> tuple[float, bytes]:
            stream = unchunked(await reader.rest())
            return time.monotonic(), stream

        started = time.monotonic()
        api.process.send(signal.SIGTERM)
        ends = await gather(*map(end_of, readers))
        assert await api.process.wait() in (0, -signal.SIGTERM)
    waits = [retry_of(stream) for _, stream in ends]
    assert all(len(frames(stream)) == 1 for _, stream in ends)
    assert min(waits) >= 500
    assert max(waits) <= 10_000
    assert len(set(waits)) > 100
    tenths = Counter(int((at - started) / window * 10) for at, _ in ends)
    assert max(tenths.values()) < 120
    assert max(at for at, _ in ends) - started < 20
    assert "Traceback" not in api.process.output
    assert "Cancel" not in api.process.output


async def test_a_drained_chat_stream_ends_with_an_error(redis: EmbeddedRedis, broker: Broker) -> None:
    """A clean end would mean success, so an error frame precedes it."""
    async with gateway(redis.url) as api, peer(api) as reader:
        writer = await start_generation(api, broker)
        await writer.append("word")
        reader.get(f"/v1/chat/completions/{writer.gid}?stream=true")
        await reader.until(b'"word"}}]}\n\n\r\n')
        api.process.send(signal.SIGTERM)
        (last,) = frames(unchunked(await reader.rest()))
        assert last.json["error"]["code"] == "server_draining"
        assert await api.process.wait() in (0, -signal.SIGTERM)


async def test_requests_during_a_drain_are_told_to_reconnect(redis: EmbeddedRedis, broker: Broker) -> None:
    """Connections are still accepted: a proxy would turn a refused one into an error, and an error stops an
    EventSource."""
    async with gateway(redis.url, TOKENCAST_DRAIN="25") as api:
        writer = await start_generation(api, broker)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                reader = await stack.enter_async_context(peer(api))
                reader.follow(writer.gid)
                await reader.until(b"event: started")
            api.process.send(signal.SIGTERM)

            async def response_to(request: str, headers: str = "") -> Answer:
                async with peer(api) as client:
                    client.send(f"{request} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
                    return await client.answer()

            async def draining() -> bool:
                return (await response_to("GET /readyz", "Connection: close\r\n")).status == 503

            await wait_until(draining)
            waits = set()
            for _ in range(20):
                stream = await response_to(f"GET /v1/generations/{writer.gid}/events")
                assert (stream.status, stream.headers["connection"]) == (200, "close")
                assert stream.headers["content-type"].startswith("text/event-stream")
                waits.add(retry_of(stream.body))
            assert len(waits) > 10
            assert (await response_to("GET /healthz")).status == 200
            assert (await response_to(f"GET /v1/generations/{writer.gid}")).status == 200
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True})
            refused = await api.http.post("/v1/chat/completions", content=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
            assert "retry-after" in refused.headers
            api.process.send(signal.SIGINT)  # a second signal skips the rest of the drain
            assert await api.process.wait() in (0, -signal.SIGTERM, -signal.SIGINT)


async def test_a_thousand_readers_move_to_another_gateway(redis: EmbeddedRedis, broker: Broker) -> None:
    """They reconnect at different times, and none misses or repeats an event. (The test divides the waiting times by
    ten.)"""
    async with (
        gateway(redis.url, TOKENCAST_DRAIN="2") as old,
        gateway(redis.url) as new,
        peers(old, 1000) as readers,
    ):
        writer = await start_generation(old, broker)
        await writer.append("one ")
        for reader in readers:
            reader.follow(writer.gid)
        received = [await reader.until(b'"one "}}]}\n\n\r\n') for reader in readers]
        started = time.monotonic()

        async def move(reader: Peer) -> tuple[float, bytes]:
            """The time of the reconnection, and the response to it."""
            wait = retry_of(unchunked(await reader.rest()))
            at = time.monotonic() - started + wait / 1000
            await asyncio.sleep(wait / 10_000)
            async with peer(new) as again:
                again.follow(writer.gid, after=f"{writer.attempt}-1")
                head = await again.until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                return at, await again.until(b"0\r\n\r\n")

        moving = asyncio.gather(*map(move, readers))
        old.process.send(signal.SIGTERM)
        await writer.append("two")
        await old.process.wait()
        await writer.finish()
        moved = await gather(moving)
    for first, (_, rest) in zip(received, moved[0], strict=True):
        assert texts(frames(unchunked(rest))) == "two"
        assert first.count(b"event: chunk") == 1
    seconds = Counter(int(at) for at, _ in moved[0])
    assert max(seconds.values()) < 300
    assert len(seconds) >= 8

"""Fan-out in edge cases: slow peers during a heartbeat, broken peers during the last write, and very many peers."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from api.dialects.native.frames import NATIVE
from api.streaming.connections import Connections
from broker import Broker
from broker.fanout.buffer import Slice
from broker.ids import START
from tests.integration.broker.fanout.test_hub import Peer, generation, hub_of
from tests.support import wait_until


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of a gateway, whose timers are coarser."""
    return "asyncio", {"use_uvloop": True}


class SlowPeer(Peer):
    """Reads two hundred bytes between any two checks."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = 0

    @property
    def pending(self) -> int:  # type: ignore[override]
        self.unread = max(0, self.unread - 200)
        return self.unread

    @pending.setter
    def pending(self, _: int) -> None:
        pass

    def write(self, part: Slice) -> None:
        super().write(part)
        self.unread += len(part.data)


class TimedPeer(Peer):
    last_written = 0.0

    def write(self, part: Slice) -> None:
        super().write(part)
        self.last_written = time.monotonic()


async def test_a_slow_peer_is_not_considered_stalled(broker: Broker) -> None:
    """A heartbeat finds unread bytes, and more follow. The stream continues while the peer reads some of them."""
    writer = await generation(broker)
    async with (
        hub_of(broker, send_timeout=0.4, heartbeat=0.3) as hub,
        hub.open(writer.gid, "default") as (feed, _),
    ):
        slow = SlowPeer()
        async with hub.subscribe(feed, NATIVE, slow, START) as subscriber:
            await wait_until(lambda: b": hb" in slow.received)
            slow.unread = 20_000
            await wait_until(lambda: subscriber.stalled)
            await writer.append(*["x" * 1000] * 60)
            await writer.finish()
            async with asyncio.timeout(20):
                assert await subscriber.ended == "ended"
        assert b"event: completed" in slow.received


async def test_a_small_unread_remainder_is_noticed(broker: Broker) -> None:
    """Far less than a buffer is pending and nothing more follows: the next heartbeat finds it unread."""
    writer = await generation(broker)
    async with (
        hub_of(broker, send_timeout=0.2, heartbeat=0.3) as hub,
        hub.open(writer.gid, "default") as (feed, _),
    ):
        stalled = Peer()
        stalled.stuck = True
        async with hub.subscribe(feed, NATIVE, stalled, START) as subscriber, asyncio.timeout(20):
            assert await subscriber.ended == "stalled"
        assert 0 < stalled.pending < 1000
        assert stalled.closing


async def test_a_peer_that_breaks_at_the_last_write_does_not_affect_the_others(broker: Broker) -> None:
    """Neither in a drain nor when a generation is deleted."""
    for ending in ("draining", "gone"):
        writer = await generation(broker)
        async with (
            hub_of(broker, heartbeat=0.3) as hub,
            hub.open(writer.gid, "default") as (feed, _),
            AsyncExitStack() as stack,
        ):
            peers = [Peer() for _ in range(30)]
            subscribers = [await stack.enter_async_context(hub.subscribe(feed, NATIVE, p, START)) for p in peers]
            await wait_until(lambda peers=peers: all(b"event: started" in peer.received for peer in peers))
            for peer in peers[::3]:
                peer.broken = True
            if ending == "draining":
                await Connections(hub, heartbeat=15, send_timeout=60).drain(0.05)
            else:
                await broker.store.redis.execute("DEL", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}")
            async with asyncio.timeout(20):
                reasons = [await subscriber.ended for subscriber in subscribers]
        last_frame = b"retry: " if ending == "draining" else b"event: gone"
        for number, (peer, reason) in enumerate(zip(peers, reasons, strict=True)):
            assert reason == ("left" if number % 3 == 0 else ending)
            assert (last_frame in peer.received) == (number % 3 != 0)


async def test_a_drain_of_many_connections_takes_its_window(broker: Broker) -> None:
    """Ten thousand in two seconds: a pause after each would be shorter than the resolution of the loop's clock. Rounded
    to zero, all would be closed at once; rounded to a millisecond, the drain would not end in time."""
    writer = await generation(broker)
    async with (
        hub_of(broker) as hub,
        hub.open(writer.gid, "default") as (feed, _),
        AsyncExitStack() as stack,
    ):
        peers = [TimedPeer() for _ in range(10_000)]
        for peer in peers:
            await stack.enter_async_context(hub.subscribe(feed, NATIVE, peer, START))
        started = time.monotonic()
        await Connections(hub, heartbeat=15, send_timeout=60).drain(2)
        sent = sorted(peer.last_written - started for peer in peers)
    assert sent[len(sent) // 2] > 0.9
    assert 1.9 < sent[-1] < 10
    assert all(b"retry: " in peer.received for peer in peers)

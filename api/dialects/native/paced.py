"""Replay of a generation at X times its original speed: `?speed=X`.

The pace is given by the `m` of each event, ms since its attempt began; time between attempts is skipped. Such a reader
runs on its own clock and shares no delivery with others: it has a task, which holds one small page of the log. A reader
with at least the original speed that has caught up with a running generation becomes an ordinary subscriber.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from api.dialects.native.frames import NATIVE
from api.keys import AccessEnd
from api.streaming.connections import Connections
from api.streaming.follow import Start
from api.streaming.response import EventStream
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import InvalidRequest, StorageUnavailable
from broker.events import STARTED, Event, is_next
from broker.fanout.buffer import Slice
from broker.fanout.dialect import EndReason
from broker.fanout.hub import HIGH_WATER
from broker.fanout.memory_feed import FIRST, MemoryFeed
from broker.fanout.subscriber import Subscriber, Wire
from broker.ids import START, Cursor
from broker.store.store import Store

SLOWEST, FASTEST = 0.01, 1000.0
PAGE = 64  # events that one reader holds
_SPEED = re.compile(r"\d{1,4}(\.\d{1,6})?", re.ASCII)


def parse_speed(text: str) -> float:
    """Parse a plain decimal number from 0.01 to 1000. Raises InvalidRequest."""
    speed = float(text) if _SPEED.fullmatch(text) else 0.0
    if not SLOWEST <= speed <= FASTEST:
        raise InvalidRequest(
            f"`speed` must be a number from {SLOWEST:g} to {FASTEST:g}, such as 2 or 0.5.", param="speed"
        )
    return speed


class Replay(EventStream):
    """An EventStream of the native dialect with its own pace. Drain, heartbeats, the peer's leaving and the send
    timeout are left to the hub, where the reader is a subscriber of an empty feed."""

    def __init__(
        self,
        connections: Connections,
        store: Store,
        stack: AsyncExitStack,
        start: Start,
        speed: float,
        *,
        until: AccessEnd | None = None,
    ) -> None:
        super().__init__(
            connections,
            stack,
            start.feed,
            NATIVE,
            start.position,
            preface=start.preface,
            until=until,
            headers={"x-generation-id": start.feed.gid},
        )
        self._store = store
        self._speed = speed

    async def write_to(self, wire: Wire) -> EndReason:
        outlet = Outlet(wire)
        if self._preface:
            outlet.write(Slice(self._preface, self._position))
            self._preface = b""
        reason = await self._replay(outlet)
        return reason or await super().write_to(outlet)

    async def _replay(self, outlet: Outlet) -> EndReason | None:
        """Write the log at its pace; return None once the reader has caught up."""
        hub = self._connections.hub
        async with hub.subscribe(MemoryFeed("", NATIVE), NATIVE, outlet, FIRST) as watch:
            walking = asyncio.create_task(self._walk(outlet, watch))
            try:
                with self._connections.expiring(watch, self._until):
                    await asyncio.wait((walking, watch.ended), return_when=asyncio.FIRST_COMPLETED)
                return walking.result() if walking.done() else watch.ended.result()
            except StorageUnavailable:
                hub.end(watch, EndReason.STORAGE)
                return watch.ended.result()
            finally:
                await cancel_and_wait((walking,))

    async def _walk(self, outlet: Outlet, watch: Subscriber) -> EndReason | None:
        pace = Pace(self._speed, await self._reached())
        feed = self._feed
        while True:
            known = feed.tail
            events = await self._store.page(feed.gid, self._position, PAGE)
            if not events and feed.tail <= max(known, self._position):  # nothing arrived meanwhile
                if self._speed >= 1 or feed.ended or known != self._position:
                    return None  # or the log is gone or went back, which the hub handles
                await feed.wait_beyond(self._position)
            due = bytearray()
            for event in events:
                if (wait := pace.wait(event)) > 0:
                    await self._send(outlet, watch, due)
                    await asyncio.sleep(wait)
                due += self._before(event)
                due += NATIVE.frame(event)
                self._position = event.cursor
            await self._send(outlet, watch, due)
            if events and events[-1].terminal:
                return EndReason.ENDED

    async def _reached(self) -> int:
        """Return when the event at the reader's position occurred, in ms since its attempt began."""
        attempt, seq = self._position
        if self._position == START:
            return 0
        at = await self._store.page(self._feed.gid, Cursor(attempt, seq - 1), 1, until=self._position)
        return at[0].at_ms if at else 0

    def _before(self, event: Event) -> bytes:
        """Return the notice for a position where the log is not contiguous."""
        if not is_next(event, self._position):
            return NATIVE.gap(self._position, event.cursor, max(event.cursor, self._feed.tail))
        if event.type == STARTED and self._position.attempt > 0:
            return NATIVE.reset()
        return b""

    async def _send(self, outlet: Outlet, watch: Subscriber, due: bytearray) -> None:
        """Write everything that is due at once, then wait until there is room for more."""
        if due:
            outlet.write(Slice(bytes(due), self._position))
            due.clear()
        while outlet.pending > HIGH_WATER:
            outlet.room.clear()
            self._connections.hub.push(watch)  # which now measures whether the peer takes anything
            await outlet.room.wait()


class Pace:
    """Computes when each event is due, from the reader's start, and anew from the start of each attempt."""

    def __init__(self, speed: float, at_ms: int) -> None:
        self._speed = speed
        self._began = time.monotonic()
        self._at_ms = at_ms

    def wait(self, event: Event) -> float:
        """Return the seconds until the event is due; zero or less if it is."""
        if event.cursor.attempt == 0:  # the time in the queue is skipped as well
            return 0
        if event.cursor.seq == 0:
            self._began, self._at_ms = time.monotonic(), event.at_ms
        return self._began + (event.at_ms - self._at_ms) / 1000 / self._speed - time.monotonic()


class Outlet(Wire):
    """A wire that is used by several subscribers in succession, and signals when it has room again."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._writable: Callable[[], None] | None = None
        self._closed: Callable[[], None] | None = None
        self.room = asyncio.Event()

    def attach(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        first = self._writable is None
        self._writable, self._closed = writable, closed
        if first:
            self._wire.attach(self._on_writable, self._on_closed)

    def _on_writable(self) -> None:
        self.room.set()
        if self._writable is not None:
            self._writable()

    def _on_closed(self) -> None:
        if self._closed is not None:
            self._closed()

    @property
    def closing(self) -> bool:
        return self._wire.closing

    @property
    def pending(self) -> int:
        return self._wire.pending

    def write(self, part: Slice) -> None:
        self._wire.write(part)

    def abort(self) -> None:
        self._wire.abort()

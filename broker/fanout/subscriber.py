"""One open response: a position in a shared buffer, and the wire to its peer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from broker.fanout.buffer import FrameBuffer, Slice
from broker.fanout.dialect import EndReason
from broker.fanout.feed import Feed
from broker.ids import Cursor


class Wire(Protocol):
    """The connection to a subscriber's peer. Two implementations: the server's transport, and plain ASGI `send`."""

    @property
    def closing(self) -> bool:
        """Whether the peer has left or was dropped."""
        ...

    @property
    def pending(self) -> int:
        """Bytes that the peer has not taken yet."""
        ...

    def attach(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        """Register callbacks: the peer can take more again; the peer has left."""
        ...

    def write(self, part: Slice) -> None: ...

    def offer(self, part: Slice) -> bool:
        """Write through a shorter path if the peer is there and has taken everything before. Returns False if nothing
        was written. Never raises."""
        return False

    def abort(self) -> None:
        """Drop the peer and the data it has not taken."""
        ...


class Subscriber:
    """One open response: a position in a buffer. `ended` is resolved with the reason once nothing more will be
    written."""

    __slots__ = (
        "_counted",
        "buffer",
        "ended",
        "feed",
        "has_received",
        "last_write_tick",
        "position",
        "since",
        "stalled",
        "wire",
    )

    def __init__(self, feed: Feed, buffer: FrameBuffer, wire: Wire, position: Cursor) -> None:
        self.feed = feed
        self.buffer = buffer
        self.wire = wire
        self.position = position
        self.since = time.monotonic()
        self.has_received = False
        self.stalled: tuple[float, int] | None = None  # since when, and the pending bytes at that time
        self.last_write_tick = 0  # the hub's tick of the last write
        self._counted = position
        self.ended: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()

    @property
    def dialect(self) -> str:
        """The name of its dialect."""
        return self.buffer.dialect.name

    @property
    def lag(self) -> int:
        """Number of events by which it is behind the log, as far as this process knows it."""
        tail, position = self.feed.tail, self.position
        return max(0, tail.seq - position.seq if tail.attempt == position.attempt else tail.seq + 1)

    def take_event_count(self) -> int:
        """Return the number of events delivered since the last call; none of an attempt that was reset since then."""
        before, (attempt, seq) = self._counted, self.position
        self._counted = self.position
        if attempt == before.attempt:
            return max(0, seq - before.seq)
        return seq + 1 + (1 - before.seq if before.attempt == 0 else 0)  # `created` precedes the first attempt

    @property
    def flowing(self) -> bool:
        """Whether it has received a part of this attempt and is neither stalled nor ended."""
        return self.has_received and self.stalled is None and not self.ended.done()

    def end(self, reason: EndReason) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

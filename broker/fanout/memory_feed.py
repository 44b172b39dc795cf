"""An in-memory feed: it belongs to no generation, never ends, is numbered by this process, and keeps a window of the
newest bytes. The hub treats it like any other feed."""

from __future__ import annotations

from broker.events import Event
from broker.fanout.buffer import FrameBuffer, Segment, Slice
from broker.fanout.dialect import Dialect
from broker.fanout.feed import Feed
from broker.generation import Generation
from broker.ids import Cursor

FIRST = Cursor(1, -1)
"""The position before the first event."""


class Window(FrameBuffer):
    """The newest `limit` bytes. A reader before the beginning of the window continues at its beginning."""

    def __init__(self, dialect: Dialect, limit: int) -> None:
        super().__init__(dialect, lambda _buffer, _segment: None)
        self._limit = limit
        self._bytes = 0
        self.earliest = FIRST

    def seal(self, segment: Segment) -> None:
        if not segment.sealed:
            super().seal(segment)
            self._bytes += segment.size
            while self._bytes > self._limit and self.segments[0].sealed:
                oldest = self.segments[0]
                self._bytes -= oldest.size
                self.earliest = oldest.end
                self.evict(oldest)

    def slice(self, position: Cursor) -> Slice | None:
        return super().slice(max(position, self.earliest))


class MemoryFeed(Feed):
    """A feed without a log: events are appended one by one and delivered by `Hub.deliver`."""

    def __init__(self, tenant: str, dialect: Dialect, limit: int = 0) -> None:
        super().__init__(_ENDLESS, tenant, lambda _buffer, _segment: None)
        self.timed = False  # no generation, so no timings
        self.window = Window(dialect, limit)
        self.buffers[dialect] = self.window

    def add(self, kind: bytes, at_ms: int, data: bytes) -> Event:
        event = Event(Cursor(FIRST.attempt, self.tail.seq + 1), kind, at_ms, data)
        self.window.extend(self.tail, (event,))
        self.tail = event.cursor
        return event


_ENDLESS = Generation(
    id="",
    status="in_progress",
    model="",
    created_at=0,
    started_at=None,
    first_token_at=None,
    ended_at=None,
    attempt=1,
    cursor=FIRST,
    usage=None,
    error=None,
    metadata={},
)

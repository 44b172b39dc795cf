"""The framed log of one generation in one dialect: immutable runs of frames that any number of subscribers share.

An event is framed once. A subscriber is a position in the log, always at the edge of a frame. The events that it has
not received are found by arithmetic and returned as one slice, the same bytes object for every subscriber at that
position. A buffer may have holes (evicted, or never read); a subscriber that reaches one has it read from Redis.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import attrgetter

from broker.events import RESET, STARTED, TERMINAL, Event
from broker.fanout.dialect import Dialect, DialectState
from broker.ids import Cursor

SEGMENT_BYTES = 64 * 1024
_SLICES = 64  # positions remembered between two appends: few are enough, since most subscribers are at the same one


class Slice:
    """Frames to write, and the position after them. Shared by all subscribers at the same position."""

    __slots__ = ("_chunk", "data", "end", "last", "opens")

    def __init__(self, data: bytes, end: Cursor, opens: bytes = b"", *, last: bool = False) -> None:
        self.data = data
        self.end = end
        self.last = last  # the last event is the terminal event
        self.opens = opens  # type of the first event if it is `started` or `reset`, which begin an attempt
        self._chunk: bytes | None = None

    @property
    def chunk(self) -> bytes:
        """The data as one chunk of HTTP/1.1's chunked encoding (RFC 9112 §7.1); b"" if there is no data, since an empty
        chunk would end the response."""
        if self._chunk is None:
            self._chunk = b"%x\r\n%b\r\n" % (len(self.data), self.data) if self.data else b""
        return self._chunk


class Segment:
    """Consecutive events of one attempt. `start` is the position before the first event: the last position of the
    previous attempt if `first` is 0. Grows until it is sealed."""

    __slots__ = ("attempt", "data", "ends", "first", "last", "opens", "sealed", "start", "state")

    def __init__(self, start: Cursor, event: Event, state: DialectState) -> None:
        self.start = start
        self.state = state  # of the dialect, at the start
        self.attempt, self.first = event.cursor
        self.opens = event.type if event.type in (STARTED, RESET) else b""
        self.data: bytearray | bytes = bytearray()
        self.ends = array("I")
        self.last = False
        self.sealed = False

    @property
    def end(self) -> Cursor:
        return Cursor(self.attempt, self.first + len(self.ends) - 1)

    @property
    def size(self) -> int:
        return len(self.data) + len(self.ends) * self.ends.itemsize

    def add(self, event: Event, frame: bytes) -> None:
        self.data += frame
        self.ends.append(len(self.data))
        self.last = event[1] in TERMINAL

    def seal(self) -> None:
        """Make the segment immutable and shrink it to its size. A reader of the whole segment then gets its data
        without a copy."""
        self.sealed = True
        self.data = bytes(self.data)
        self.ends = self.ends[:]

    def accepts(self, event: Event) -> bool:
        """Return whether the event is the next one and there is room for it."""
        attempt, seq = event[0]
        return (
            seq == self.first + len(self.ends)
            and attempt == self.attempt
            and not self.sealed
            and len(self.data) < SEGMENT_BYTES
        )

    def covers(self, position: Cursor) -> bool:
        """Return whether the event after the position is in this segment."""
        return self.start <= position < self.end

    def after(self, position: Cursor) -> Slice:
        """Return everything after a position that the segment covers."""
        skipped = position.seq - self.first + 1 if position.attempt == self.attempt else 0
        offset = self.ends[skipped - 1] if skipped > 0 else 0
        data = bytes(memoryview(self.data)[offset:] if offset else self.data)
        return Slice(data, self.end, self.opens if skipped <= 0 else b"", last=self.last)


class FrameBuffer:
    """The part of one log that this process holds in one dialect.

    `on_access(buffer, segment)` is called for each segment that may be evicted, when it is sealed and each time it is
    read.
    """

    def __init__(self, dialect: Dialect, on_access: Callable[[FrameBuffer, Segment], None]) -> None:
        self.dialect = dialect
        self._state = dialect.begin()  # after the last event
        self._segments: list[Segment] = []
        self._slices: dict[Cursor, Slice | None] = {}
        self._on_access = on_access

    @property
    def segments(self) -> Sequence[Segment]:
        return self._segments

    def extend(self, previous: Cursor, events: Sequence[Event]) -> None:
        """Append the newest events of the log, which follow `previous`."""
        self._slices.clear()
        state = self._state
        frame = state.frame
        segment = self._segments[-1] if self._segments else None
        for event in events:
            if segment is None or not segment.accepts(event):
                if segment is not None:
                    if segment.end >= event.cursor:
                        previous = event.cursor
                        continue  # a page from Redis has brought it already
                    self.seal(segment)
                segment = Segment(previous, event, state.copy())
                self._segments.append(segment)
            segment.add(event, frame(event))
            previous = event.cursor

    def insert(self, position: Cursor, events: Sequence[Event]) -> None:
        """Fill a hole after `position` with a page that was read there, up to the next event that is known."""
        self._slices.clear()
        state = self.state_at(position)
        read: list[Segment] = []
        for event in events:
            known = self._at(event.cursor)
            if known is not None:
                if known.first == event.cursor.seq:
                    known.start = position  # its predecessor is known now
                break
            if not read or not read[-1].accepts(event):
                read.append(Segment(position, event, state.copy()))
                self._segments.insert(bisect_right(self._segments, event.cursor, key=_first), read[-1])
            read[-1].add(event, state.frame(event))
            position = event.cursor
        # Seal the first segment last, so that it is evicted last: readers wait for it. In the other order a page larger
        # than the cache was read again and again.
        for segment in reversed(read):
            self.seal(segment)

    def state_at(self, position: Cursor) -> DialectState:
        """Return the dialect's state at a position. All dialects are stateless so far, so it is the same everywhere;
        one that folds the log begins with the state of the nearest segment at or before the position."""
        return self._state

    def slice(self, position: Cursor) -> Slice | None:
        """Return what follows a position, up to the end of a segment; None if nothing or a hole follows."""
        try:
            return self._slices[position]
        except KeyError:
            pass
        at = bisect_right(self._segments, position, key=_start) - 1
        found = None
        if at >= 0 and (segment := self._segments[at]).covers(position):
            found = segment.after(position)
            if segment.sealed:
                self._on_access(self, segment)
        if len(self._slices) >= _SLICES:
            self._slices.clear()
        self._slices[position] = found
        return found

    def seal(self, segment: Segment) -> None:
        if not segment.sealed:
            segment.seal()
            self._on_access(self, segment)

    def seal_all(self) -> None:
        """Seal all segments because the last subscriber has left: now the growing segment may be evicted too. The
        remembered slices are dropped, since the cache does not count them (they doubled its size)."""
        self._slices.clear()
        for segment in self._segments:
            self.seal(segment)

    def evict(self, segment: Segment) -> None:
        self._slices.clear()
        if segment in self._segments:
            self._segments.remove(segment)

    def clear(self) -> None:
        self._slices.clear()
        self._segments.clear()

    def _at(self, cursor: Cursor) -> Segment | None:
        """Return the segment that holds this event."""
        at = bisect_right(self._segments, cursor, key=_first) - 1
        if at >= 0 and self._segments[at].end >= cursor and self._segments[at].attempt == cursor.attempt:
            return self._segments[at]
        return None


class FrameCache:
    """The segments of all buffers that may be evicted. Growing segments are not counted: up to 64 KiB per followed
    buffer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._segments: OrderedDict[Segment, FrameBuffer] = OrderedDict()
        self.bytes = 0

    def on_access(self, buffer: FrameBuffer, segment: Segment) -> None:
        """Note that a segment was sealed or read, and evict the oldest ones beyond the limit."""
        if segment in self._segments:
            self._segments.move_to_end(segment)
            return
        self._segments[segment] = buffer
        self.bytes += segment.size
        while self.bytes > self._limit and len(self._segments) > 1:
            oldest, owner = self._segments.popitem(last=False)
            self.bytes -= oldest.size
            owner.evict(oldest)


_start = attrgetter("start")


def _first(segment: Segment) -> Cursor:
    return Cursor(segment.attempt, segment.first)

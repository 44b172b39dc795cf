"""One wire for many subscribers. What is pending on it is pending for each of them, so all fall behind together; they
take turns being first when it has room again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from api.dialects.native.multiplex_frames import VectorCursor
from broker.fanout.buffer import Slice
from broker.fanout.feed import Feed
from broker.fanout.subscriber import Wire


class SharedWire:
    """The shared wire; only its shares attach to it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._shares: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        wire.attach(self._on_writable, self._on_closed)

    def attach(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        self._shares.append((writable, closed))

    def _on_writable(self) -> None:
        self._shares.rotate(-1)
        for writable, _ in tuple(self._shares):
            writable()

    def _on_closed(self) -> None:
        for _, closed in tuple(self._shares):
            closed()


class WireShare(Wire):
    """One subscriber's use of the wire."""

    def __init__(self, shared: SharedWire) -> None:
        self._shared = shared
        self._wire = shared.wire

    def attach(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        self._shared.attach(writable, closed)

    @property
    def closing(self) -> bool:
        return self._wire.closing

    @property
    def pending(self) -> int:
        return self._wire.pending

    def write(self, part: Slice) -> None:
        if part.data:  # an empty chunk would end the response
            self._wire.write(part)

    def abort(self) -> None:
        self._wire.abort()


class GenerationShare(WireShare):
    """Keeps one generation's cursor in the stream's vector, and adds the vector to its terminal event."""

    def __init__(self, shared: SharedWire, vector: VectorCursor, place: int, feed: Feed) -> None:
        super().__init__(shared)
        self._vector = vector
        self._place = place
        self._feed = feed

    def write(self, part: Slice) -> None:
        if part.end.seq >= 0:  # otherwise no event of the attempt has been written yet
            self._vector.cursors[self._place] = part.end
        if part.last:
            if self._feed.gone:
                self._vector.cursors[self._place] = None
            part = Slice(self._vector.sign(part.data), part.end)
        super().write(part)

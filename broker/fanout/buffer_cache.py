"""How much of recently read logs a process keeps framed: so many bytes, the least recently read go first."""

from __future__ import annotations

from collections import OrderedDict

from broker.fanout.buffer import FrameBuffer, Segment


class FrameCache:
    """All segments that may be evicted, of all views. Growing ones are not among them: 64 KiB per followed view."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._segments: OrderedDict[Segment, FrameBuffer] = OrderedDict()
        self.bytes = 0

    def use(self, view: FrameBuffer, segment: Segment) -> None:
        """It was sealed, or read just now."""
        if segment in self._segments:
            self._segments.move_to_end(segment)
            return
        self._segments[segment] = view
        self.bytes += segment.size
        while self.bytes > self._limit and len(self._segments) > 1:
            oldest, owner = self._segments.popitem(last=False)
            self.bytes -= oldest.size
            owner.evict(oldest)

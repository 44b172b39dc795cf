"""Bounded memory for framed logs: the least recently used segments are evicted first."""

from __future__ import annotations

from collections import OrderedDict

from broker.fanout.buffer import FrameBuffer, Segment


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

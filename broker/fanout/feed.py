"""The state of one generation's log in this process while it has subscribers: its tail, whether it has ended, and the
buffers that subscribers read from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker.events import CHUNK, GONE, RESET, STARTED, TERMINAL, USAGE, Event, RawEntry, from_entry, is_next
from broker.fanout.buffer import FrameBuffer, Segment
from broker.fanout.dialect import Dialect
from broker.generation import Generation
from broker.ids import Cursor


def _waiting(generation: Generation) -> Generation | None:
    return generation if generation.status == "queued" else None


class OutOfOrder(Exception):
    """An entry does not follow the tail: the log went back or lost entries, and must be read again."""


class Feed:
    """One followed log. `tail` is the cursor of the newest event, or the newest one known before the first subscriber
    came."""

    def __init__(self, generation: Generation, tenant: str, on_access: Callable[[FrameBuffer, Segment], None]) -> None:
        self.gid = generation.id
        self.trace = generation.trace
        self.tenant = tenant
        self.users = 0
        self.checked = 0  # the hub's tick of the last event or check
        self.suspect = False  # a subscriber is ahead of it in another attempt: the log may have gone back
        self.buffers: dict[Dialect, FrameBuffer] = {}
        self._on_access = on_access
        self._waiters: set[asyncio.Future[None]] = set()
        self.tail = generation.cursor
        self.ended = generation.ended
        self.has_chunk = generation.first_token_at is not None
        self.gone = False
        self.waits = _waiting(generation)
        """The generation while it waits in the queue; None once a worker has it."""
        # For fanout/timing.py: the last delivered position and its time, the newest entry, and whether the first chunk
        # was delivered.
        self.timed = True
        self.delivered_attempt, self.delivered_seq, self.delivered_at = -1, 0, 0.0
        self.newest: RawEntry | None = None
        self.first_chunk_delivered = self.has_chunk

    def refresh(self, generation: Generation) -> None:
        """Take over the current state from Redis after a time without a reader. The buffers stay valid, since a log
        only grows; if it may have gone back in between (a failover), they are cleared."""
        if generation.cursor < self.tail or generation.cursor.attempt != self.tail.attempt:
            self._clear_buffers()
        self.tail = generation.cursor
        self.ended = generation.ended
        self.waits = _waiting(generation)
        self.gone = False
        self.has_chunk = self.first_chunk_delivered = generation.first_token_at is not None
        self.delivered_attempt = -1
        self.notify()

    def _clear_buffers(self) -> None:
        for buffer in self.buffers.values():
            buffer.clear()

    def mark_gone(self) -> None:
        """Mark the generation as gone: Redis does not know it any more, and no event will follow."""
        self.ended = self.gone = True
        self.notify()

    def buffer(self, dialect: Dialect) -> FrameBuffer:
        buffer = self.buffers.get(dialect)
        if buffer is None:
            buffer = self.buffers[dialect] = FrameBuffer(dialect, self._on_access)
        return buffer

    def extend(self, entries: Sequence[RawEntry]) -> None:
        """Append the entries that follow the tail; raises OutOfOrder for others. Known entries are skipped: a read that
        was in flight when the feed was refreshed brings them again."""
        attempt, seq = self.tail
        chunks: list[Event] = []
        for entry_id, fields in entries:
            # Nearly every entry is the chunk after the last one. Its id is compared, not parsed.
            if fields[1] == CHUNK and entry_id == b"%d-%d" % (attempt, seq + 1):
                seq += 1
                chunks.append(Event(Cursor(attempt, seq), CHUNK, int(fields[3]), fields[5]))
            else:
                self._append(chunks)
                chunks.clear()
                self._take(from_entry((entry_id, fields)))
                attempt, seq = self.tail
        self._append(chunks)
        self.newest = entries[-1]
        self.notify()

    def _take(self, event: Event) -> None:
        if event.cursor <= self.tail:
            return
        if not is_next(event, self.tail):
            raise OutOfOrder(f"{self.gid}: {event.cursor} after {self.tail}")
        if event.cursor.attempt != self.tail.attempt:
            self._clear_buffers()  # Redis may have lost a part of the previous attempt; it is read again on request
        self._append((event,))

    def _append(self, events: Sequence[Event]) -> None:
        """Append events of one attempt that follow the tail; several events are always chunks."""
        if not events:
            return
        for buffer in self.buffers.values():
            buffer.extend(self.tail, events)
        self.tail, kind, _, _ = events[-1]
        if kind in (CHUNK, USAGE):
            self.has_chunk = True
        elif kind in (STARTED, RESET):
            self.has_chunk = False
            self.waits = None
        elif kind in TERMINAL:
            self.ended = True
            self.gone = kind == GONE

    def notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait_beyond(self, position: Cursor) -> None:
        """Wait until there is an event after the position, the generation has ended, or the log may have gone back."""
        while self.tail <= position and not self.ended:
            await self.wait_change()
            if self.tail < position:
                return

    async def wait_first_chunk(self) -> None:
        """Wait until the newest attempt has a chunk or the generation has ended."""
        while not self.has_chunk and not self.ended:
            await self.wait_change()

    async def wait_ended(self) -> None:
        """Wait until the generation has ended."""
        while not self.ended:
            await self.wait_change()

    async def wait_change(self) -> None:
        """Wait for the next change of the feed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

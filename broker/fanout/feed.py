"""What this process knows of one generation's log while somebody reads it here: its tail, whether it has ended,
and the views that subscribers read from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker.events import CHUNK, GONE, RESET, STARTED, TERMINAL, USAGE, Event, RawEntry, from_entry, is_next
from broker.fanout.buffer import Dialect, FrameBuffer, Segment
from broker.generation import Generation
from broker.ids import Cursor


class OutOfOrder(Exception):
    """An entry that is not the next one: the log went back or lost something, and must be read again."""


class Feed:
    """`tail` is the newest event's cursor, or the newest known when nobody followed yet."""

    def __init__(self, generation: Generation, tenant: str, used: Callable[[FrameBuffer, Segment], None]) -> None:
        self.gid = generation.id
        self.trace = generation.trace
        self.tenant = tenant
        self.users = 0
        self.checked = 0  # the hub's tick at which it was last heard of, or asked for
        self.doubted = False  # somebody is ahead of it, in another attempt: the log may have gone back
        self.views: dict[Dialect, FrameBuffer] = {}
        self._used = used
        self._waiters: set[asyncio.Future[None]] = set()
        self.tail = generation.cursor
        self.ended = generation.ended
        self.has_chunk = generation.first_token_at is not None
        self.gone = False
        # For fanout/timing.py: up to where readers were served, and when; the newest entry; is the first chunk out.
        self.timed = True
        self.served_attempt, self.served_seq, self.served_at = -1, 0, 0.0
        self.newest: RawEntry | None = None
        self.shown = self.has_chunk

    def refresh(self, generation: Generation) -> None:
        """Takes over what Redis says now, after a time without a reader. What is held stays valid, since a log
        only grows; if it may have gone back in between (a failover), everything is forgotten."""
        if generation.cursor < self.tail or generation.cursor.attempt != self.tail.attempt:
            self._forget()
        self.tail = generation.cursor
        self.ended = generation.ended
        self.gone = False
        self.has_chunk = self.shown = generation.first_token_at is not None
        self.served_attempt = -1
        self.changed()

    def _forget(self) -> None:
        for view in self.views.values():
            view.clear()

    def vanish(self) -> None:
        """Redis does not know the generation any more; nothing will come."""
        self.ended = self.gone = True
        self.changed()

    def view(self, dialect: Dialect) -> FrameBuffer:
        view = self.views.get(dialect)
        if view is None:
            view = self.views[dialect] = FrameBuffer(dialect, self._used)
        return view

    def extend(self, entries: Sequence[RawEntry]) -> None:
        """The entries that follow the tail. OutOfOrder where they do not. Those that are known already are left
        out: a read that was under way when the feed was refreshed brings them again."""
        attempt, seq = self.tail
        chunks: list[Event] = []
        for entry_id, fields in entries:
            # Nearly every entry is the chunk behind the last one. Its id is compared, not parsed.
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
        self.changed()

    def _take(self, event: Event) -> None:
        if event.cursor <= self.tail:
            return
        if not is_next(event, self.tail):
            raise OutOfOrder(f"{self.gid}: {event.cursor} behind {self.tail}")
        if event.cursor.attempt != self.tail.attempt:
            self._forget()  # Redis may have forgotten some of the attempt before; who asks for it reads it again
        self._append((event,))

    def _append(self, events: Sequence[Event]) -> None:
        """What follows the tail, in one attempt: of more than one all are chunks."""
        if not events:
            return
        for view in self.views.values():
            view.extend(self.tail, events)
        self.tail, kind, _, _ = events[-1]
        if kind in (CHUNK, USAGE):
            self.has_chunk = True
        elif kind in (STARTED, RESET):
            self.has_chunk = False
        elif kind in TERMINAL:
            self.ended = True
            self.gone = kind == GONE

    def changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def beyond(self, position: Cursor) -> None:
        """Until there is something behind the position, or there never will be; or the log may have gone back."""
        while self.tail <= position and not self.ended:
            await self.change()
            if self.tail < position:
                return

    async def begun(self) -> None:
        """Until the newest attempt has a chunk, or the generation has ended."""
        while not self.has_chunk and not self.ended:
            await self.change()

    async def over(self) -> None:
        """Until the generation has ended."""
        while not self.ended:
            await self.change()

    async def change(self) -> None:
        """Until there is any news."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

"""Who is written to: one open response, as a position in a shared view, and the wire to its peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from broker.fanout.buffer import FrameBuffer, Slice
from broker.fanout.feed import Feed
from broker.ids import Cursor


class Wire(Protocol):
    """Where a subscriber's bytes go. Two implementations: the server's transport, and plain ASGI `send`."""

    @property
    def closing(self) -> bool:
        """The peer has gone, or was dropped."""
        ...

    @property
    def pending(self) -> int:
        """Bytes that the peer has not taken yet."""
        ...

    def attach(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        """Whom to tell that the peer takes more again, and that it has gone."""
        ...

    def write(self, part: Slice) -> None: ...

    def offer(self, part: Slice) -> bool:
        """A shorter way, if the peer is there and has taken all before; False if nothing was written. Never raises."""
        return False

    def abort(self) -> None:
        """Drops the peer and what it has not taken."""
        ...


class Subscriber:
    """One open response: a position in a view. `ended` gives the reason once nothing more will be written:
    `ended` (the terminal event was), `left`, `stalled`, or a farewell's."""

    __slots__ = ("_counted", "ended", "feed", "given", "position", "quiet_since", "stalled", "view", "wire")

    def __init__(self, feed: Feed, view: FrameBuffer, wire: Wire, position: Cursor) -> None:
        self.feed = feed
        self.view = view
        self.wire = wire
        self.position = position
        self.given = False
        self.stalled: tuple[float, int] | None = None  # since when, and how much was pending then
        self.quiet_since = 0  # the hub's tick at which something was written last
        self._counted = position
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def dialect(self) -> str:
        """Its name."""
        return type(self.view.dialect).__name__.lower()

    def events(self) -> int:
        """How many it has been given since this was last asked; of an attempt that was reset since then, none."""
        before, (attempt, seq) = self._counted, self.position
        self._counted = self.position
        if attempt == before.attempt:
            return max(0, seq - before.seq)
        return seq + 1 + (1 - before.seq if before.attempt == 0 else 0)  # `created` stands before the first attempt

    @property
    def flowing(self) -> bool:
        """Given something of this attempt, and neither stalled nor ended."""
        return self.given and self.stalled is None and not self.ended.done()

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

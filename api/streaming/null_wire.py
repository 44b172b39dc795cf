"""A subscriber who is told nothing: how a caller waits for an end as the hub's other readers do, farewells included."""

from __future__ import annotations

from collections.abc import Callable

from broker.events import Event
from broker.fanout.buffer import Slice
from broker.fanout.dialect import EndReason, Stateless
from broker.ids import Cursor


class NullWire(Stateless):
    """Dialect and wire in one."""

    name = "silence"
    crosses_attempts = True
    heartbeat = b""
    closing = False
    pending = 0

    def frame(self, event: Event) -> bytes:
        return b""

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        return b": gap\n"  # goes on

    def reset(self) -> bytes:
        return b""

    def end(self, reason: EndReason) -> bytes:
        return b""

    def attach(self, writable: Callable[[], None], closed: Callable[[], None]) -> None:
        pass

    def write(self, part: Slice) -> None:
        pass

    def offer(self, part: Slice) -> bool:
        return True

    def abort(self) -> None:
        pass


SILENCE = NullWire()

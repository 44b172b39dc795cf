"""What a log holds: one event per entry, as three fields `t` (type), `m` (ms since the attempt began) and
`d` (one line of JSON, ready for an SSE `data:` field).

The worker checks and encodes `d` once; nobody after it decodes it to pass it on. Unknown types travel
through untouched, so an old gateway survives a new worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from broker.ids import Cursor, entry_cursor

CREATED: Final = b"cr"
STARTED: Final = b"st"
RESET: Final = b"rs"
WAITING: Final = b"w"
CHUNK: Final = b"c"
USAGE: Final = b"u"  # a chunk that holds nothing but usage: `choices` is empty
COMPLETED: Final = b"ok"
FAILED: Final = b"f"
CANCELLED: Final = b"x"
GONE: Final = b"g"

TERMINAL: Final = frozenset({COMPLETED, FAILED, CANCELLED, GONE})

NAMES: Final = {
    CREATED: "created",
    STARTED: "started",
    RESET: "reset",
    WAITING: "waiting",
    CHUNK: "chunk",
    USAGE: "chunk",
    COMPLETED: "completed",
    FAILED: "failed",
    CANCELLED: "cancelled",
    GONE: "gone",
}

FINAL_STATUSES: Final = frozenset({"completed", "failed", "cancelled"})
STATUSES: Final = ("queued", "in_progress", "completed", "failed", "cancelled")


class Event(NamedTuple):
    """One entry of a log. A tuple, which is made in a third of the time that a frozen dataclass takes."""

    cursor: Cursor
    type: bytes
    at_ms: int
    data: bytes

    @property
    def name(self) -> str:
        """The name readers know it by: `chunk`, `completed`, …"""
        return NAMES.get(self.type) or self.type.decode("ascii", "replace")

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL


# What an entry looks like in a raw reply of XRANGE and XREAD: the id and the field list.
RawEntry = tuple[bytes, list[bytes]]


def from_entry(entry: RawEntry) -> Event:
    """The writers are our scripts, so the fields stand in the order t, m, d; more may follow one day."""
    entry_id, fields = entry
    return Event(entry_cursor(entry_id), fields[1], int(fields[3]), fields[5])


def is_next(event: Event, previous: Cursor) -> bool:
    """The reader's rule: the next seq of the same attempt, or seq 0 of a higher one. `gone` may always come.

    Anything else is not the next event, and whoever holds it must read again.
    """
    cursor = event.cursor
    if cursor.attempt == previous.attempt:
        return cursor.seq == previous.seq + 1 or event.type == GONE
    return cursor.attempt > previous.attempt and cursor.seq == 0


def contiguous(position: Cursor, events: Sequence[Event]) -> list[Event]:
    """The events that follow the position, and each other, without a gap."""
    found: list[Event] = []
    for event in events:
        if not is_next(event, position):
            break
        found.append(event)
        position = event.cursor
    return found

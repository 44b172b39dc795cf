"""The events of a log: one per entry, with the fields `t` (type), `m` (ms since the attempt began) and `d` (one line of
JSON, ready for an SSE `data:` field).

The worker validates and encodes `d` once; it is forwarded without being decoded. Unknown types are forwarded
unchanged, so an old gateway works with a new worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

from broker.chunks import Json, decode_chunk, text_of_chunk
from broker.errors import BrokerError
from broker.ids import Cursor, entry_cursor

CREATED: Final = b"cr"
STARTED: Final = b"st"
RESET: Final = b"rs"
WAITING: Final = b"w"
CHUNK: Final = b"c"
USAGE: Final = b"u"  # a chunk with usage only: `choices` is empty
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
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
WaitingReason = Literal[
    "queued", "upstream_limit", "upstream_busy", "upstream_down", "tenant_limit", "paused", "scheduled"
]
"""Reasons why a generation waits: all workers are busy; the upstream has as many calls as it takes, refused one (429,
503), or is down (its circuit is open); the tenant is at its limit; an operator paused it; it is scheduled for later."""
ResetReason = Literal["worker_lost", "worker_stopped", "upstream_error"]
"""Reasons why a generation starts again."""
STATUSES: Final = get_args(Status)


class Event(NamedTuple):
    """One entry of a log. A named tuple: creating one takes a third of the time of a frozen dataclass."""

    cursor: Cursor
    type: bytes
    at_ms: int
    data: bytes

    @property
    def name(self) -> str:
        """The public name: `chunk`, `completed`, …"""
        return NAMES.get(self.type) or self.type.decode("ascii", "replace")

    @property
    def terminal(self) -> bool:
        """Whether this is the last event of its log."""
        return self.type in TERMINAL

    @property
    def json(self) -> Json:
        """The data as an object. For a chunk, that is the upstream's chunk."""
        return decode_chunk(self.data)

    @property
    def text(self) -> str:
        """The text that this event adds to choice 0; "" for events other than chunks."""
        return text_of_chunk(self.json) if self.type == CHUNK else ""


# An entry in a raw reply of XRANGE or XREAD: the id and the list of fields.
RawEntry = tuple[bytes, list[bytes]]


def from_entry(entry: RawEntry) -> Event:
    """Convert a raw entry. Only our scripts write entries: the fields are in the order t, m, d; more may follow."""
    entry_id, fields = entry
    return Event(entry_cursor(entry_id), fields[1], int(fields[3]), fields[5])


def is_next(event: Event, previous: Cursor) -> bool:
    """Return whether an event directly follows a cursor: the next seq of the same attempt, or seq 0 of a higher one.
    `gone` is valid at any position.

    If it does not, events are missing, and the reader must read again from `previous`.
    """
    cursor = event.cursor
    if cursor.attempt == previous.attempt:
        return cursor.seq == previous.seq + 1 or event.type == GONE
    return cursor.attempt > previous.attempt and cursor.seq == 0


def contiguous(position: Cursor, events: Sequence[Event]) -> list[Event]:
    """Return the leading events that follow the position, and each other, without a gap."""
    found: list[Event] = []
    for event in events:
        if not is_next(event, position):
            break
        found.append(event)
        position = event.cursor
    return found


class GapFound(BrokerError):
    """The log has no event directly after the cursor: it was trimmed, or the cursor is from another log."""

    code = "gap"

    def __init__(self, requested: Cursor, found: Cursor) -> None:
        super().__init__(f"After {requested} the log continues with {found}.")
        self.requested = requested
        self.found = found

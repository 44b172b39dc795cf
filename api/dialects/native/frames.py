"""Our own server-sent events: every event of the log, under its own name and id (WHATWG HTML §9.2).

id: 1850812345678901-7
event: chunk
data: {"id":"…","object":"chat.completion.chunk","choices":[…]}
"""

from __future__ import annotations

import msgspec

from api.streaming.reconnect import retry
from broker.events import NAMES, Event
from broker.ids import START, Cursor

_NAMES = {kind: name.encode() for kind, name in NAMES.items()}


class Native:
    """A reader may go from one attempt into the next: `reset` tells it to forget what it showed."""

    crosses_attempts = True
    heartbeat = b": hb\n\n"

    def frame(self, event: Event) -> bytes:
        attempt, seq = event.cursor
        name = _NAMES.get(event.type) or event.name.encode()
        return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (attempt, seq, name, event.data)

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        data = {"requested": str(requested), "earliest": str(earliest), "latest": str(latest)}
        return b"event: gap\ndata: %b\n\n" % msgspec.json.encode(data)

    def forget(self) -> bytes:
        return unknown_cursor(1)

    def farewell(self, reason: str) -> bytes:
        """Come back, at a time of your own: no error, and nothing lost."""
        if reason == "gone":
            return b"event: gone\ndata: {}\n\n"
        return retry(reason)


NATIVE = Native()


def unknown_cursor(attempt: int) -> bytes:
    """The cursor is not of this log: forget what you showed, all of it follows."""
    data = msgspec.json.encode({"attempt": attempt, "reason": "unknown_cursor"})
    return b"id: %b\nevent: reset\ndata: %b\n\n" % (str(START).encode(), data)


def bookmark(cursor: Cursor) -> bytes:
    """Sets an EventSource's last event id without an event, so that a reader that began at `latest` and lost
    its connection before anything came loses nothing."""
    return b"id: %b\n\n" % str(cursor).encode()

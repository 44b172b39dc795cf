"""Our own server-sent events: every event of the log with its name and id (WHATWG HTML §9.2).

id: 1850812345678901-7
event: chunk
data: {"id":"…","object":"chat.completion.chunk","choices":[…]}
"""

from __future__ import annotations

import msgspec

from api.streaming.reconnect import retry
from broker.events import NAMES, Event
from broker.fanout.dialect import EndReason, Stateless
from broker.ids import START, Cursor

_NAMES = {kind: name.encode() for kind, name in NAMES.items()}


class Native(Stateless):
    """The native dialect. A reader may continue from one attempt into the next: `reset` tells it to discard what it has
    shown."""

    name = "native"
    crosses_attempts = True
    heartbeat = b": hb\n\n"

    def frame(self, event: Event) -> bytes:
        attempt, seq = event.cursor
        name = _NAMES.get(event.type) or event.name.encode()
        return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (attempt, seq, name, event.data)

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        data = {"requested": str(requested), "earliest": str(earliest), "latest": str(latest)}
        return b"event: gap\ndata: %b\n\n" % msgspec.json.encode(data)

    def reset(self) -> bytes:
        return unknown_cursor(1)

    def end(self, reason: EndReason) -> bytes:
        """Ask the reader to reconnect at a random time: no error, and nothing is lost."""
        if reason is EndReason.GONE:
            return b"event: gone\ndata: {}\n\n"
        return retry(reason)


NATIVE = Native()


def unknown_cursor(attempt: int) -> bytes:
    """Return a `reset` event: the cursor is not of this log; discard what was shown, the whole log follows."""
    data = msgspec.json.encode({"attempt": attempt, "reason": "unknown_cursor"})
    return b"id: %b\nevent: reset\ndata: %b\n\n" % (str(START).encode(), data)


def bookmark(cursor: Cursor) -> bytes:
    """Set an EventSource's last event id without an event, so that a reader that began at `latest` and lost its
    connection before the first event loses nothing."""
    return b"id: %b\n\n" % str(cursor).encode()

"""Native events of many generations on one stream: each carries its generation and its cursor in that log.

event: chunk
data: {"generation":"gen_…","cursor":"1850812345678901-7","at":1250,"data":{"id":"…","choices":[…]}}

These frames are shared by all streams that show the generation, so they have no `id:`. The id contains the cursors of
all generations of one stream, and is written only with frames of that stream.
"""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from api.streaming.reconnect import retry
from broker.errors import InvalidCursor
from broker.events import NAMES, Event
from broker.fanout.dialect import EndReason, Stateless
from broker.ids import START, Cursor, parse_cursor

_NAMES = {kind: name.encode() for kind, name in NAMES.items()}


@dataclass(frozen=True, slots=True)
class MultiplexedNative(Stateless):
    """The events of one generation on a multiplexed stream."""

    gid: str

    name = "wrapped"
    crosses_attempts = True
    heartbeat = b""
    """None: the stream has its own, see VectorCursor."""

    def frame(self, event: Event) -> bytes:
        name = _NAMES.get(event.type) or event.name.encode()
        return self._wrap(name, event.cursor, event.data, b'"at":%d,' % event.at_ms)

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        data = {"requested": str(requested), "earliest": str(earliest), "latest": str(latest)}
        return self._wrap(b"gap", requested, msgspec.json.encode(data))

    def reset(self) -> bytes:
        return self.unknown_cursor(1)

    def end(self, reason: EndReason) -> bytes:
        """None: the stream has its own, see VectorCursor."""
        return b""

    def unknown_cursor(self, attempt: int) -> bytes:
        """Return a `reset` event: the cursor is not of this log; discard what was shown, the whole log follows."""
        return self._wrap(b"reset", START, msgspec.json.encode({"attempt": attempt, "reason": "unknown_cursor"}))

    def gone(self, position: Cursor) -> bytes:
        """Return a `gone` event: the generation does not exist, does not exist any more, or is not the caller's."""
        return self._wrap(b"gone", position, b"{}")

    def _wrap(self, name: bytes, cursor: Cursor, data: bytes, at: bytes = b"") -> bytes:
        # Encoded: the id of a `gone` event may be any text from the URL.
        return b'event: %b\ndata: {"generation":%b,"cursor":"%d-%d",%b"data":%b}\n\n' % (
            name,
            msgspec.json.encode(self.gid),
            *cursor,
            at,
            data,
        )


class VectorCursor(Stateless):
    """The cursor of a multiplexed stream: one cursor per generation, None if its last event was `gone`. Also the
    dialect of the stream itself: heartbeats and the end, both with an `id:`."""

    name = "vector"
    crosses_attempts = True

    def __init__(self, gids: Sequence[str], cursors: Sequence[Cursor | None]) -> None:
        self.cursors = list(cursors)
        self._check = _check(gids)

    def __bytes__(self) -> bytes:
        cursors = ",".join("g" if cursor is None else str(cursor) for cursor in self.cursors)
        return urlsafe_b64encode(f"{self._check} {cursors}".encode()).rstrip(b"=")

    def sign(self, frames: bytes) -> bytes:
        """Add the `id:` to the last of these frames."""
        return b"%bid: %b\n\n" % (frames[:-1], bytes(self))

    @property
    def heartbeat(self) -> bytes:
        """It also sets an EventSource's last event id, without an event."""
        return self.sign(b": hb\n\n")

    def end(self, reason: EndReason) -> bytes:
        return self.sign(retry(reason))

    def frame(self, event: Event) -> bytes:
        return b""

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        return b""

    def reset(self) -> bytes:
        return b""


def parse_vector_cursor(text: str, gids: Sequence[str]) -> list[Cursor | None] | None:
    """Return the cursors of a vector of these generations; None for any other text."""
    try:
        check, _, cursors = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        parsed = [None if cursor == "g" else parse_cursor(cursor) for cursor in cursors.split(",")]
    except (ValueError, InvalidCursor):
        return None
    return parsed if check == _check(gids) and len(parsed) == len(gids) else None


def _check(gids: Sequence[str]) -> str:
    return f"{zlib.crc32(' '.join(gids).encode()):08x}"

"""Native events of many generations on one stream: each says whose it is, and where in that one's log.

event: chunk
data: {"generation":"gen_…","cursor":"1850812345678901-7","data":{"id":"…","choices":[…]}}

These frames are shared by all streams that show the generation, so they have no `id:`. That is each stream's own, the
cursors of all its generations, and stands on what is written for one stream only.
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
from broker.ids import START, Cursor, parse_cursor

_NAMES = {kind: name.encode() for kind, name in NAMES.items()}


@dataclass(frozen=True, slots=True)
class MultiplexedNative:
    """The events of one generation."""

    gid: str

    crosses_attempts = True
    heartbeat = b""
    """The stream's, not each generation's."""

    def frame(self, event: Event) -> bytes:
        name = _NAMES.get(event.type) or event.name.encode()
        return self._wrap(name, event.cursor, event.data)

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        data = {"requested": str(requested), "earliest": str(earliest), "latest": str(latest)}
        return self._wrap(b"gap", requested, msgspec.json.encode(data))

    def forget(self) -> bytes:
        return self.unknown_cursor(1)

    def farewell(self, reason: str) -> bytes:
        """The stream's, not each generation's."""
        return b""

    def unknown_cursor(self, attempt: int) -> bytes:
        """The cursor is not of this log: forget what you showed, all of it follows."""
        return self._wrap(b"reset", START, msgspec.json.encode({"attempt": attempt, "reason": "unknown_cursor"}))

    def gone(self, position: Cursor) -> bytes:
        """It is not there, or not any more, or not the caller's."""
        return self._wrap(b"gone", position, b"{}")

    def _wrap(self, name: bytes, cursor: Cursor, data: bytes) -> bytes:
        # Encoded: what is said to be gone may be any text that stood in a URL.
        return b'event: %b\ndata: {"generation":%b,"cursor":"%d-%d","data":%b}\n\n' % (
            name,
            msgspec.json.encode(self.gid),
            *cursor,
            data,
        )


class VectorCursor:
    """How far a stream has told each of its generations; None where the last word on it was `gone`. Dialect of what is
    the stream's own: heartbeats and the farewell, both with an `id:`."""

    crosses_attempts = True

    def __init__(self, gids: Sequence[str], cursors: Sequence[Cursor | None]) -> None:
        self.cursors = list(cursors)
        self._check = _check(gids)

    def __bytes__(self) -> bytes:
        cursors = ",".join("g" if cursor is None else str(cursor) for cursor in self.cursors)
        return urlsafe_b64encode(f"{self._check} {cursors}".encode()).rstrip(b"=")

    def sign(self, frames: bytes) -> bytes:
        """Puts the `id:` on the last of these frames."""
        return b"%bid: %b\n\n" % (frames[:-1], bytes(self))

    @property
    def heartbeat(self) -> bytes:
        """Also sets an EventSource's last event id, without an event."""
        return self.sign(b": hb\n\n")

    def farewell(self, reason: str) -> bytes:
        return self.sign(retry(reason))

    def frame(self, event: Event) -> bytes:
        return b""

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        return b""

    def forget(self) -> bytes:
        return b""


def parse_vector_cursor(text: str, gids: Sequence[str]) -> list[Cursor | None] | None:
    """The cursors of a vector of these generations; None from any other text."""
    try:
        check, _, cursors = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        parsed = [None if cursor == "g" else parse_cursor(cursor) for cursor in cursors.split(",")]
    except (ValueError, InvalidCursor):
        return None
    return parsed if check == _check(gids) and len(parsed) == len(gids) else None


def _check(gids: Sequence[str]) -> str:
    return f"{zlib.crc32(' '.join(gids).encode()):08x}"

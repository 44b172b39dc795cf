"""Readers that know only the contract. They fold the received bytes as a careful client does, and fail at the first
violation of the contract.

Chunks of the model state their position: `3.7 ` is the eighth piece of the third text. The text of a reader must always
be `n.0 n.1 … n.i` for one n: the beginning of one attempt's text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Position = tuple[int, int]
Piece = tuple[int, int]
ENDINGS = frozenset({"completed", "failed", "cancelled"})
_KNOWN = frozenset({"created", "started", "reset", "waiting", "chunk", "gap", "gone"}) | ENDINGS


class Violation(AssertionError):
    """A violation of the contract."""


def pieces(content: str) -> list[Piece]:
    return [(int(n), int(i)) for n, _, i in (word.partition(".") for word in content.split())]


@dataclass
class Shown:
    """The text that a reader shows."""

    pieces: list[Piece] = field(default_factory=list)
    partial: bool = False
    """The reader began in the middle or got a gap: the text may begin at any piece and may skip pieces once."""
    loose: bool = False

    def add(self, content: str) -> None:
        for piece in pieces(content):
            n, i = piece
            if self.pieces and not self.loose:
                last = self.pieces[-1]
                if n != last[0]:
                    raise Violation(f"mixed texts: {piece} after {last}")
                if i != last[1] + 1:
                    raise Violation(f"{'duplicate' if i <= last[1] else 'hole'}: {piece} after {last}")
            elif not self.loose and i != 0:
                raise Violation(f"a text that begins with {piece}")
            self.pieces.append(piece)
            self.loose = False

    def forget(self) -> None:
        self.pieces, self.partial, self.loose = [], False, False

    def skip(self) -> None:
        self.partial = self.loose = True


class NativeReader:
    """The native event stream. `feed` bytes; `last_id` is what an EventSource would send on its next connection."""

    def __init__(self, *, latest: bool = False) -> None:
        self.shown = Shown()
        self.last_id: str | None = None
        self.position: Position = (0, 0)
        self.ending: tuple[str, str] | None = None
        self.ended_at: Position = (0, 0)
        self.gone = False
        self.history: list[str] = []
        self.gaps = self.resets = self.synthetic = 0
        self._latest = latest
        self._buffer = b""
        self.asked_to_reconnect = False
        """The last frame was `retry:`, a request to reconnect."""

    @property
    def over(self) -> bool:
        return self.ending is not None or self.gone

    def connect(self) -> None:
        """A new connection. A partial frame of the old one is lost."""
        self._buffer = b""
        self.asked_to_reconnect = False

    def feed(self, data: bytes) -> None:
        *blocks, self._buffer = (self._buffer + data).split(b"\n\n")
        for block in blocks:
            self._block(block)

    def _block(self, block: bytes) -> None:
        self.history.append(block.decode().replace("\n", " | ")[:160])
        if self.over:
            raise Violation(f"data after the end: {block!r}")
        fields: dict[str, str] = {}
        for line in block.decode().split("\n"):
            name, colon, value = line.partition(":")
            if not colon or name in fields:
                raise Violation(f"not an event: {block!r}")
            fields[name] = value.removeprefix(" ")
        self.asked_to_reconnect = "retry" in fields and fields.keys() <= {"retry", ""}  # a comment with the reason
        if self.asked_to_reconnect or fields.keys() == {""}:
            return
        if fields.keys() == {"id"}:
            if not self._latest or self.last_id is not None:
                raise Violation("an unexpected bookmark")
            self._move(fields["id"])
            self.shown.skip()
            return
        if not fields.keys() >= {"event", "data"}:
            raise Violation(f"not an event: {block!r}")
        self.event(fields.get("id"), fields["event"], fields["data"])

    def event(self, cursor: str | None, name: str, data: str) -> None:
        if name not in _KNOWN:
            raise Violation(f"unknown event {name}")
        if name == "gap":
            self._gap(json.loads(data))
        elif name == "gone":
            self.gone = True
        elif name == "reset" and cursor == "0-0":
            self.synthetic += 1
            self._forget()
            self._move(cursor)
        else:
            self._in_order(cursor, name)
            self._fold(name, data)

    def _gap(self, gap: dict[str, Any]) -> None:
        earliest = _position(gap["earliest"])
        if _position(gap["requested"]) != self.position and self.last_id is not None:
            raise Violation(f"a gap after {gap['requested']}, but the reader is at {self.position}")
        if earliest <= self.position or earliest > _position(gap["latest"]):
            raise Violation(f"an inconsistent gap: {gap}")
        self.gaps += 1
        self.shown.skip()
        self.position = (earliest[0], earliest[1] - 1)

    def _in_order(self, cursor: str | None, name: str) -> None:
        if cursor is None:
            raise Violation(f"{name} without an id")
        here, (attempt, seq) = self.position, _position(cursor)
        first = name in ("started", "reset")
        next_one = attempt == here[0] and seq == here[1] + 1 and (first == (seq == 0) or name in ENDINGS)
        opens = attempt > here[0] and seq == 0 and (first or name in ("cancelled", "failed"))
        if not next_one and not opens:
            raise Violation(f"{name} {cursor} after {here[0]}-{here[1]}")
        self._move(cursor)

    def _fold(self, name: str, data: str) -> None:
        if name == "started" and self.shown.pieces:
            raise Violation(f"an attempt begins without a reset of {self.shown.pieces}")
        if name == "reset":
            self.resets += 1
            self._forget()
        elif name == "chunk":
            for choice in json.loads(data)["choices"]:
                self.shown.add(choice["delta"].get("content") or "")
        elif name in ENDINGS:
            self.ending = (name, data)
            self.ended_at = self.position

    def _forget(self) -> None:
        self.shown.forget()

    def _move(self, cursor: str) -> None:
        self.last_id = cursor
        self.position = _position(cursor)

    def closed(self, status: int) -> None:
        """The server has ended the response. The world checks 204, 404 and 410."""
        if self._buffer.strip(b": hb\n"):
            raise Violation(f"the response ends inside a frame: {self._buffer!r}")
        if status == 200 and not self.over and not self.asked_to_reconnect:
            raise Violation("a clean end without an ending event and without `retry:`")


class ChatReader:
    """OpenAI's stream as an SDK reads it: text cannot be revoked, and a clean end means success."""

    def __init__(self) -> None:
        self.shown = Shown()
        self.done = False
        self.error: str | None = None
        self.history: list[str] = []
        self._buffer = b""

    @property
    def over(self) -> bool:
        return self.done or self.error is not None

    def connect(self) -> None:
        pass

    def feed(self, data: bytes) -> None:
        *blocks, self._buffer = (self._buffer + data).split(b"\n\n")
        for block in blocks:
            self._block(block)

    def _block(self, block: bytes) -> None:
        self.history.append(block.decode().replace("\n", " | ")[:160])
        if self.over:
            raise Violation(f"data after the end: {block!r}")
        data = next(
            (line.removeprefix("data: ") for line in block.decode().split("\n") if line.startswith("data: ")), None
        )
        if data is None:
            raise Violation(f"not a frame: {block!r}")
        if data == "[DONE]":
            self.done = True
            return
        body = json.loads(data)
        if "error" in body:
            self.error = body["error"]["code"]
            return
        for choice in body["choices"]:
            self.shown.add(choice["delta"].get("content") or "")

    def closed(self, status: int) -> None:
        if status == 200 and not self.over:
            raise Violation("a clean end that an SDK interprets as success")


def _position(cursor: str) -> Position:
    attempt, _, seq = cursor.partition("-")
    return int(attempt), int(seq)

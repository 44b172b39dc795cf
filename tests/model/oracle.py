"""A reader that knows the contract and nothing else. It folds what came over the wire, byte by byte, as a careful
client would, and fails at the first thing that the contract does not allow.

Chunks of the model say where they belong: `3.7 ` is the eighth piece of the third text. What a reader shows must at
every moment be `n.0 n.1 … n.i` for one n: the beginning of one attempt's text.
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
    """The contract does not allow this."""


def pieces(content: str) -> list[Piece]:
    return [(int(n), int(i)) for n, _, i in (word.partition(".") for word in content.split())]


@dataclass
class Shown:
    """What stands on a reader's screen."""

    pieces: list[Piece] = field(default_factory=list)
    partial: bool = False
    """It began in the middle, or was told of a gap: the text need not begin at 0, and may go on anywhere once."""
    loose: bool = False

    def add(self, content: str) -> None:
        for piece in pieces(content):
            n, i = piece
            if self.pieces and not self.loose:
                last = self.pieces[-1]
                if n != last[0]:
                    raise Violation(f"two texts mixed: {piece} behind {last}")
                if i != last[1] + 1:
                    raise Violation(f"{'duplicate' if i <= last[1] else 'hole'}: {piece} behind {last}")
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
        self.asked_back = False
        """The last thing it was told is when to come back."""

    @property
    def over(self) -> bool:
        return self.ending is not None or self.gone

    def connect(self) -> None:
        """A new connection: what was half sent on the old one is lost."""
        self._buffer = b""
        self.asked_back = False

    def feed(self, data: bytes) -> None:
        *blocks, self._buffer = (self._buffer + data).split(b"\n\n")
        for block in blocks:
            self._block(block)

    def _block(self, block: bytes) -> None:
        self.history.append(block.decode().replace("\n", " | ")[:160])
        if self.over:
            raise Violation(f"something follows the end: {block!r}")
        fields: dict[str, str] = {}
        for line in block.decode().split("\n"):
            name, colon, value = line.partition(":")
            if not colon or name in fields:
                raise Violation(f"not an event: {block!r}")
            fields[name] = value.removeprefix(" ")
        self.asked_back = "retry" in fields and fields.keys() <= {"retry", ""}  # the comment says why
        if self.asked_back or fields.keys() == {""}:
            return
        if fields.keys() == {"id"}:
            if not self._latest or self.last_id is not None:
                raise Violation("a bookmark that nobody asked for")
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

    def _gap(self, told: dict[str, Any]) -> None:
        earliest = _position(told["earliest"])
        if _position(told["requested"]) != self.position and self.last_id is not None:
            raise Violation(f"a gap behind {told['requested']}, but the reader is at {self.position}")
        if earliest <= self.position or earliest > _position(told["latest"]):
            raise Violation(f"a gap that makes no sense: {told}")
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
            raise Violation(f"{name} {cursor} behind {here[0]}-{here[1]}")
        self._move(cursor)

    def _fold(self, name: str, data: str) -> None:
        if name == "started" and self.shown.pieces:
            raise Violation(f"an attempt begins, but nobody said to forget {self.shown.pieces}")
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
        """The response has ended, by the server's will. 204, 404 and 410 are judged by who knows the truth."""
        if self._buffer.strip(b": hb\n"):
            raise Violation(f"the response ends within a frame: {self._buffer!r}")
        if status == 200 and not self.over and not self.asked_back:
            raise Violation("a clean end, but neither the generation's nor an invitation to come back")


class ChatReader:
    """OpenAI's stream, as an SDK reads it: text cannot be taken back, and a clean end means success."""

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
            raise Violation(f"something follows the end: {block!r}")
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
            raise Violation("a clean end that an SDK takes for success")


def _position(cursor: str) -> Position:
    attempt, _, seq = cursor.partition("-")
    return int(attempt), int(seq)

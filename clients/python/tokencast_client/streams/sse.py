"""Decoding of server-sent events (WHATWG HTML §9.2), from pieces of any size."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One block of a stream. `id` is the last one seen so far; `retry` is in milliseconds."""

    id: str
    event: str
    data: str
    retry: int | None


class Decoder:
    """Decodes one response. An incomplete block at its end is dropped."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []  # of the line that is incomplete
        self._first = True
        self._id = ""
        self._clear()

    def _clear(self) -> None:
        self._event = ""
        self._data: list[str] = []
        self._retry: int | None = None
        self._pending = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the blocks that these bytes complete."""
        text = self._text.decode(data)
        if self._first and text:
            self._first = False
            text = text.removeprefix("\ufeff")
        *lines, rest = text.split("\n")
        frames: list[Frame] = []
        for line in lines:
            whole, self._parts = "".join((*self._parts, line)), []
            if frame := self._line(whole.removesuffix("\r")):
                frames.append(frame)
        if rest:
            self._parts.append(rest)
        return frames

    def _line(self, line: str) -> Frame | None:
        if not line:
            frame = Frame(self._id, self._event or "message", "\n".join(self._data), self._retry)
            pending = self._pending
            self._clear()
            return frame if pending else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self._retry = int(value)
        else:
            return None
        self._pending = True
        return None

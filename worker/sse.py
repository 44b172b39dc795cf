"""Splits an upstream's raw bytes into the payloads of its SSE events.

By hand, because the SDK's decoder dies of what some upstreams send (a comment after an id, a lone `retry:`) and
costs ten times as much.
"""

from __future__ import annotations

LONGEST = 1 << 20  # bytes of one line, and of one event: without a cap an upstream could fill our memory


class LineTooLong(ValueError):
    """An event of the upstream is longer than 1 MiB."""

    def __init__(self) -> None:
        super().__init__("longer than 1 MiB")


class SseSplitter:
    """Fed with reads of any size; lines end with LF or CRLF. What no blank line has ended is never delivered."""

    __slots__ = ("_data", "_held", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of a line that has not ended; joined once, so that tiny reads stay cheap
        self._held = 0
        self._data: list[bytes] = []  # the `data` lines of an event that has not ended
        self._size = 0

    def feed(self, read: bytes) -> list[bytes]:
        """The payloads of the events that this read completes. LineTooLong beyond the cap."""
        if b"\n" not in read:
            self._hold(read)
            return []
        lines = read.split(b"\n")
        if self._parts:
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts.clear()
            self._held = 0
        rest = lines.pop()
        payloads: list[bytes] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line)
                if self._size > LONGEST:
                    raise LineTooLong
            elif data and line in (b"", b"\r"):
                payloads.append(_joined(data))
                data.clear()
                self._size = 0
        if rest:
            self._hold(rest)
        return payloads

    def _hold(self, part: bytes) -> None:
        self._parts.append(part)
        self._held += len(part)
        if self._held > LONGEST:
            raise LineTooLong


def _joined(data: list[bytes]) -> bytes:
    if len(data) == 1:
        return data[0].removesuffix(b"\r")
    return b"\n".join([line.removesuffix(b"\r") for line in data])

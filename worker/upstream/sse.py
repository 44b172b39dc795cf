"""Splits the raw bytes of an event stream into the events that it dispatches (WHATWG HTML, 9.2.6).

Our own parser, because the SDK's decoder fails on what some upstreams send (a comment after an id, a lone `retry:`)
and costs ten times as much.
"""

from __future__ import annotations

LONGEST = 8 << 20  # bytes; the default of the limit
BOM = b"\xef\xbb\xbf"


class LineTooLong(ValueError):
    """A line or an event is longer than the limit."""

    def __init__(self, longest: int) -> None:
        super().__init__(f"longer than {longest} bytes")


SseEvent = tuple[bytes, bytes]
"""One dispatched event: its `event:` field, empty if it has none, and its joined `data:` lines."""


class SseSplitter:
    """Takes reads of any size. Lines end with LF, CRLF or CR; a byte order mark at the beginning is skipped. An event
    that no blank line has ended is never delivered."""

    __slots__ = ("_after_cr", "_begun", "_data", "_held", "_longest", "_name", "_parts", "_size")

    def __init__(self, longest: int = LONGEST) -> None:
        """`longest`: bytes of one line, and of one event; without a limit an upstream could fill our memory."""
        self._longest = longest
        self._parts: list[bytes] = []  # of a line that has not ended; joined once, so that tiny reads stay cheap
        self._held = 0
        self._name = b""
        self._data: list[bytes] = []  # the `data` lines of an event that has not ended
        self._size = 0
        self._begun = False
        self._after_cr = False

    def feed(self, read: bytes) -> list[SseEvent]:
        """Return the events that this read completes. Raises LineTooLong."""
        if not self._begun:
            read = self._skip_bom(read)
        if self._after_cr or b"\r" in read:
            read = self._with_line_feeds(read)
        if b"\n" not in read:
            self._hold(read)
            return []
        lines = read.split(b"\n")
        if self._parts:
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts.clear()
            self._held = 0
        rest = lines.pop()
        events: list[SseEvent] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line)
                if self._size > self._longest:
                    raise LineTooLong(self._longest)
            elif not line:
                if data:
                    events.append((self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                    data.clear()
                    self._size = 0
                self._name = b""
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
            elif line.startswith(BOM + b"data:"):  # of an encoder that is begun anew for each write
                data.append(line.removeprefix(BOM)[5:].removeprefix(b" "))
        if rest:
            self._hold(rest)
        return events

    def pending(self) -> bytes | None:
        """Return the data of an event that no blank line has ended, or None."""
        lines = [*self._data]
        last = b"".join(self._parts)
        if last.startswith(b"data:"):
            lines.append(last[5:].removeprefix(b" "))
        return b"\n".join(lines) if lines else None

    def _skip_bom(self, read: bytes) -> bytes:
        """The mark may come in pieces; what has been held is part of what is returned."""
        if self._parts:
            read = b"".join((*self._parts, read))
            self._parts.clear()
            self._held = 0
        if len(read) < len(BOM) and BOM.startswith(read):
            self._hold(read)
            return b""
        self._begun = True
        return read.removeprefix(BOM)

    def _with_line_feeds(self, read: bytes) -> bytes:
        """A CR at the end of a read has ended its line already: an LF that follows it is no line of its own."""
        if self._after_cr and read:
            read = read.removeprefix(b"\n")
            self._after_cr = False
        if read.endswith(b"\r"):
            self._after_cr = True
        return read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _hold(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._held += len(part)
            if self._held > self._longest:
                raise LineTooLong(self._longest)

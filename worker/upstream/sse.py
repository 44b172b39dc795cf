"""Splits the raw bytes of an event stream into the events that it dispatches (WHATWG HTML, 9.2.6).

The SDK's decoder is not used: it fails on input that some upstreams send (a comment after an id, a lone `retry:`) and
costs ten times as much.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 8 << 20  # bytes; default limit of a line and of an event
BOM = b"\xef\xbb\xbf"


class LineTooLong(ValueError):
    """A line or an event exceeds the limit."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"longer than {max_bytes} bytes")


SseEvent = tuple[bytes, bytes]
"""One dispatched event: its `event:` field, empty if it has none, and its joined `data:` lines."""


class SseSplitter:
    """Incremental splitter; `feed` accepts reads of any size. Lines end with LF, CRLF or CR; a byte order mark at the
    beginning is skipped. An event is delivered only after its blank line."""

    __slots__ = ("_after_cr", "_data", "_held", "_max_bytes", "_name", "_parts", "_size", "_started")

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        """`max_bytes`: maximum bytes of a line and of an event; without a limit an upstream could fill the memory."""
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []  # parts of an unfinished line; joined once, so that tiny reads stay cheap
        self._held = 0
        self._name = b""
        self._data: list[bytes] = []  # the `data` lines of an unfinished event
        self._size = 0
        self._started = False
        self._after_cr = False

    def feed(self, read: bytes) -> list[SseEvent]:
        """Return the events that this read completes. Raises LineTooLong."""
        if not self._started:
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
                if self._size > self._max_bytes:
                    raise LineTooLong(self._max_bytes)
            elif not line:
                if data:
                    events.append((self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                    data.clear()
                    self._size = 0
                self._name = b""
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
            elif line.startswith(BOM + b"data:"):  # from an encoder that adds a mark to each write
                data.append(line.removeprefix(BOM)[5:].removeprefix(b" "))
        if rest:
            self._hold(rest)
        return events

    def pending(self) -> bytes | None:
        """Return the data of an unfinished event (without its blank line), or None."""
        lines = [*self._data]
        last = b"".join(self._parts)
        if last.startswith(b"data:"):
            lines.append(last[5:].removeprefix(b" "))
        return b"\n".join(lines) if lines else None

    def _skip_bom(self, read: bytes) -> bytes:
        """Remove the byte order mark, which may arrive in pieces. The result includes bytes held from earlier reads."""
        if self._parts:
            read = b"".join((*self._parts, read))
            self._parts.clear()
            self._held = 0
        if len(read) < len(BOM) and BOM.startswith(read):
            self._hold(read)
            return b""
        self._started = True
        return read.removeprefix(BOM)

    def _with_line_feeds(self, read: bytes) -> bytes:
        """Convert CRLF and CR to LF. A CR at the end of a read ended its line: an LF that follows it is dropped."""
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
            if self._held > self._max_bytes:
                raise LineTooLong(self._max_bytes)

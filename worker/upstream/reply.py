"""Interprets an upstream's reply: turns bytes into chunks and decides what its end means. No I/O and no clock.

A reply is complete once each requested choice has its finish reason, or `[DONE]` arrived after a chunk. Anything that
arrives later, and the way in which the connection ends, does not change that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from broker.events import USAGE
from worker.upstream.chunks import Chunk, InvalidChunk, UnknownObject, decode_payload
from worker.upstream.error_forms import ERROR_EVENTS
from worker.upstream.errors import UpstreamError, from_stream_error
from worker.upstream.sse import BOM, LineTooLong, SseEvent, SseSplitter

DONE = b"[done]"
EVENT_STREAM = "text/event-stream"
_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


class Reply:
    """State of one reply. Pass each read to `feed`. `done`: nothing more is needed. `error`: the reason why the reply
    cannot become complete."""

    __slots__ = (
        "_body", "_choices", "_content_type", "_finished", "_has_choices", "_has_deltas", "_max_bytes", "_secrets",
        "_splitter", "_typed", "_unknown", "done", "error", "has_chunks", "has_usage",
    )  # fmt: skip

    def __init__(self, choices: int, secrets: Sequence[str], max_bytes: int, content_type: str = EVENT_STREAM) -> None:
        """`choices`: number of requested choices. `secrets`: texts that are removed from messages. `max_bytes`: maximum
        bytes of one event."""
        self._choices = choices
        self._secrets = secrets
        self._max_bytes = max_bytes
        self._content_type = content_type
        self._splitter = SseSplitter(max_bytes)
        self._typed = False
        self._has_deltas = False
        self._has_choices = False  # whether a payload had a choice
        self._unknown: UnknownObject | None = None
        self.has_usage = False
        """Whether the upstream sent its usage."""
        self._body: bytearray | None = None
        self._finished: set[int] = set()
        self.done = False
        self.has_chunks = False
        """Whether a chunk arrived."""
        self.error: UpstreamError | None = None

    @property
    def started(self) -> bool:
        """Whether any part of the completion arrived."""
        return self.has_chunks or self._body is not None

    @property
    def finished(self) -> bool:
        """Whether each choice has its finish reason."""
        return len(self._finished) >= self._choices

    def feed(self, read: bytes) -> list[Chunk]:
        """Return the chunks that this read completes, up to the first fault, which sets `error`."""
        if not self._typed:
            self._detect_json(read)
        try:
            if self._body is not None:
                self._body += read
                if len(self._body) > self._max_bytes:
                    raise LineTooLong(self._max_bytes)
                return self._complete_body() if read.rstrip().endswith((b"}", b"]")) else []
            return self._process(self._splitter.feed(read))
        except LineTooLong:
            self._fail(
                UpstreamError("output_too_large", f"The upstream sent an event larger than {self._max_bytes} bytes.")
            )
            return []

    def end(self) -> list[Chunk]:
        """Handle the clean end of the response: return the chunks that this completes."""
        chunks: list[Chunk] = []
        if self._body is not None:
            chunks = self._process([(b"", self._body_bytes())])
            self.done = self.done or (self._has_choices and self.error is None)
        if not self.done and self.error is None:
            chunks += self._last_event()
        if self.finished:
            self.done = True
        elif not self.done and self.error is None:
            self._fail(self._unfinished())
        return chunks

    def _last_event(self) -> list[Chunk]:
        """Return the chunk of an unterminated last event. It counts only if it marks the reply as complete."""
        pending = self._splitter.pending()
        if pending is None:
            return []
        if _is_done(pending):
            self._on_done_marker()
            return []
        try:
            found = decode_payload(pending, streamed=self._has_deltas)
        except InvalidChunk:
            return []
        chunks: list[Chunk] = []
        if isinstance(found, Chunk) and found.finished:
            self._add(found, chunks)
        return chunks

    def stop_waiting(self) -> None:
        """Mark the complete reply as done without waiting for more."""
        self.done = True

    def end_broken(self, error: UpstreamError) -> list[Chunk]:
        """Handle a broken connection, which is harmless if the reply is complete: return the chunks that complete it.
        A reply whose usage arrived, or that came as one JSON body, was paid for: it is not retried."""
        chunks = self._last_event()
        if self.has_usage or self._body is not None:
            error.retryable = False
        self._fail(error)
        return chunks

    def _complete_body(self) -> list[Chunk]:
        """Return the chunks of a JSON body that is complete, even if the connection stays open."""
        try:
            found = decode_payload(self._body_bytes())
        except InvalidChunk:
            return []
        if not isinstance(found, Chunk) or not (found.is_message or found.finished or found.error is not None):
            return []  # may be one of several lines
        chunks: list[Chunk] = []
        self._add(found, chunks)
        if self._has_choices and self.error is None:
            self.done = True
        elif self.error is None:
            self._fail(self._unfinished())
        return chunks

    def _body_bytes(self) -> bytes:
        return bytes(self._body or b"").removeprefix(BOM)

    def _detect_json(self, read: bytes) -> None:
        """Detect a JSON body: an error, or a completion in one piece, whatever the content type says."""
        text = read.lstrip(BOM + b" \t\r\n")
        if text:
            self._typed = True
            if text[:1] in (b"{", b"["):
                self._body = bytearray()

    def _fail(self, error: UpstreamError) -> None:
        if self.finished:
            self.done = True
        elif self.error is None:
            self.error = error

    def _process(self, events: list[SseEvent]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for name, joined in events:
            if name not in ERROR_EVENTS and _is_done(joined):
                self._on_done_marker()
                break
            data, ends = _split_done(joined)
            try:
                found = decode_payload(data, name, streamed=self._has_deltas)
            except InvalidChunk as error:
                self._fail(UpstreamError("bad_upstream_response", f"The upstream sent an invalid chunk: {error}."))
                break
            if isinstance(found, UnknownObject):
                self._unknown = found
            elif found is not None and not self._add(found, chunks):
                break
            if ends:
                self._on_done_marker()
                break
        return chunks

    def _add(self, chunk: Chunk, chunks: list[Chunk]) -> bool:
        """Add a chunk; return whether the reply continues after it."""
        if chunk.error is not None:
            if chunk.tokens or chunk.finished:  # text next to an error is part of the completion
                chunks.append(chunk)
                self.has_chunks = True
                self._has_choices = self._has_choices or chunk.has_choices
            self._fail(from_stream_error(chunk.error, self._secrets))
            return False
        chunks.append(chunk)
        self.has_chunks = True
        self.has_usage = self.has_usage or chunk.type == USAGE
        self._has_choices = self._has_choices or chunk.has_choices
        self._has_deltas = self._has_deltas or (chunk.tokens > 0 and not chunk.is_message)
        if chunk.finished:
            self._finished.update(chunk.finished)
        return True

    def _on_done_marker(self) -> None:
        """Handle `[DONE]`. It completes nothing without a choice or after an unknown object without a finish reason."""
        if self._has_choices and (self._unknown is None or self.finished):
            self.done = True
        else:
            self._fail(self._unfinished())

    def _unfinished(self) -> UpstreamError:
        if self._unknown is not None:
            return from_stream_error(self._unknown.fields, self._secrets)
        return _truncated() if self._has_choices else self._empty()

    def _empty(self) -> UpstreamError:
        if self._content_type == EVENT_STREAM:
            return UpstreamError("bad_upstream_response", "The upstream's stream was empty.")
        return wrong_type(self._content_type)


def _is_done(data: bytes) -> bool:
    return data[:1] in (b"[", b'"', b" ") and data.strip(b' \t"').lower() == DONE


def _split_done(data: bytes) -> tuple[bytes, bool]:
    """Split a `[DONE]` line from an event that also holds the last chunk; return (data, whether there was one)."""
    head, newline, last = data.rpartition(b"\n")
    return (head, True) if newline and _is_done(last.strip()) else (data, False)


def wrong_type(content_type: str) -> UpstreamError:
    """Return the error for a reply that is not an event stream. A malformed content type is not quoted."""
    named = content_type if _TYPE.fullmatch(content_type) else "another content type"
    return UpstreamError("bad_upstream_response", f"The upstream answered with {named} instead of an event stream.")


def _truncated() -> UpstreamError:
    return UpstreamError("upstream_truncated", "The upstream's stream ended before the completion was finished.")

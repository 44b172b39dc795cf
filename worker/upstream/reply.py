"""An upstream's reply: from bytes to chunks, and what its end means. No I/O and no clock.

A reply is complete once each choice that was asked for has its finish reason, or `[DONE]` came behind a chunk. Nothing
that comes later, and no way in which the connection ends, takes that back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from broker.events import USAGE
from worker.upstream.chunks import BadChunk, Chunk, Remark, decode_payload
from worker.upstream.error_forms import ERROR_EVENTS
from worker.upstream.errors import UpstreamError, from_stream_error
from worker.upstream.sse import BOM, LineTooLong, SseEvent, SseSplitter

DONE = b"[done]"
EVENT_STREAM = "text/event-stream"
_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


class Reply:
    """Feed it what was read; `done` says that nothing more is needed, `error` why it will never be complete."""

    __slots__ = (
        "_begun", "_choices", "_content_type", "_finished", "_longest", "_remark", "_secrets", "_splitter", "_spoke",
        "_streamed", "_whole", "counted", "done", "error", "seen",
    )  # fmt: skip

    def __init__(self, choices: int, secrets: Sequence[str], longest: int, content_type: str = EVENT_STREAM) -> None:
        """`choices`: how many were asked for. `secrets`: what no message may hold. `longest`: bytes of one event."""
        self._choices = choices
        self._secrets = secrets
        self._longest = longest
        self._content_type = content_type
        self._splitter = SseSplitter(longest)
        self._begun = False
        self._streamed = False
        self._spoke = False  # whether there was a choice
        self._remark: Remark | None = None
        self.counted = False
        """Whether the upstream has told its usage."""
        self._whole: bytearray | None = None
        self._finished: set[int] = set()
        self.done = False
        self.seen = False
        """Whether there was a chunk."""
        self.error: UpstreamError | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of the answer has come."""
        return self.seen or self._whole is not None

    @property
    def finished(self) -> bool:
        """Whether each choice has its finish reason."""
        return len(self._finished) >= self._choices

    def feed(self, read: bytes) -> list[Chunk]:
        """Return the chunks that this read completes, up to the first thing that is wrong, which becomes `error`."""
        if not self._begun:
            self._look_at(read)
        try:
            if self._whole is not None:
                self._whole += read
                if len(self._whole) > self._longest:
                    raise LineTooLong(self._longest)
                return self._whole_answer() if read.rstrip().endswith((b"}", b"]")) else []
            return self._take(self._splitter.feed(read))
        except LineTooLong:
            self._fail(UpstreamError("output_too_large", f"The upstream sent an event of over {self._longest} bytes."))
            return []

    def end(self) -> list[Chunk]:
        """The response came to its clean end: return the chunks that this completes."""
        chunks: list[Chunk] = []
        if self._whole is not None:
            chunks = self._take([(b"", self._body())])
            self.done = self.done or (self._spoke and self.error is None)
        if not self.done and self.error is None:
            chunks += self._last_event()
        if self.finished:
            self.done = True
        elif not self.done and self.error is None:
            self._fail(self._unfinished())
        return chunks

    def _last_event(self) -> list[Chunk]:
        """The event that no blank line has ended counts if it says that the answer is complete."""
        pending = self._splitter.pending()
        if pending is None:
            return []
        if _is_done(pending):
            self._end_marked()
            return []
        try:
            found = decode_payload(pending, streamed=self._streamed)
        except BadChunk:
            return []
        return self._take([(b"", pending)]) if isinstance(found, Chunk) and found.finished else []

    def settle(self) -> None:
        """It is complete, and nothing more is waited for."""
        self.done = True

    def break_off(self, error: UpstreamError) -> list[Chunk]:
        """The connection broke, which is harmless if the reply is complete: return the chunks that complete it. What
        has been counted, or came in one piece, was paid for: it is not asked for again."""
        chunks = self._last_event()
        if self.counted or self._whole is not None:
            error.retryable = False
        self._fail(error)
        return chunks

    def _whole_answer(self) -> list[Chunk]:
        """A body that is a JSON value is whole, whether or not the connection ends."""
        text = self._body()
        try:
            found = decode_payload(text)
        except BadChunk:
            return []
        if not isinstance(found, Chunk) or not (found.whole or found.finished or found.error is not None):
            return []  # a line of several, perhaps
        chunks = self._take([(b"", text)])
        if self._spoke and self.error is None:
            self.done = True
        elif self.error is None:
            self._fail(self._unfinished())
        return chunks

    def _body(self) -> bytes:
        return bytes(self._whole or b"").removeprefix(BOM)

    def _look_at(self, read: bytes) -> None:
        """What begins as JSON is no stream, whatever its type says: an error, or a completion in one piece."""
        text = read.lstrip(BOM + b" \t\r\n")
        if text:
            self._begun = True
            if text[:1] in (b"{", b"["):
                self._whole = bytearray()

    def _fail(self, error: UpstreamError) -> None:
        if self.finished:
            self.done = True
        elif self.error is None:
            self.error = error

    def _take(self, events: list[SseEvent]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for name, joined in events:
            if name not in ERROR_EVENTS and _is_done(joined):
                self._end_marked()
                break
            data, ends = _without_done(joined)
            try:
                found = decode_payload(data, name, streamed=self._streamed)
            except BadChunk as error:
                self._fail(UpstreamError("bad_upstream_response", f"The upstream sent a bad chunk: {error}."))
                break
            if isinstance(found, Remark):
                self._remark = found
            elif found is not None and not self._took(found, chunks):
                break
            if ends:
                self._end_marked()
                break
        return chunks

    def _took(self, chunk: Chunk, chunks: list[Chunk]) -> bool:
        """Whether the reply goes on behind it."""
        if chunk.error is not None:
            if chunk.tokens or chunk.finished:  # the text that comes with an error is text
                chunks.append(chunk)
                self.seen = True
                self._spoke = self._spoke or chunk.speaks
            self._fail(from_stream_error(chunk.error, self._secrets))
            return False
        chunks.append(chunk)
        self.seen = True
        self.counted = self.counted or chunk.type == USAGE
        self._spoke = self._spoke or chunk.speaks
        self._streamed = self._streamed or (chunk.tokens > 0 and not chunk.whole)
        if chunk.finished:
            self._finished.update(chunk.finished)
        return True

    def _end_marked(self) -> None:
        """`[DONE]` alone is no answer, and behind an unknown object without a finish reason it is none either."""
        if self._spoke and (self._remark is None or self.finished):
            self.done = True
        else:
            self._fail(self._unfinished())

    def _unfinished(self) -> UpstreamError:
        if self._remark is not None:
            return from_stream_error(self._remark.fields, self._secrets)
        return _truncated() if self._spoke else self._empty()

    def _empty(self) -> UpstreamError:
        if self._content_type == EVENT_STREAM:
            return UpstreamError("bad_upstream_response", "The upstream's stream was empty.")
        return wrong_type(self._content_type)


def _is_done(data: bytes) -> bool:
    return data[:1] in (b"[", b'"', b" ") and data.strip(b' \t"').lower() == DONE


def _without_done(data: bytes) -> tuple[bytes, bool]:
    """An event may hold the last chunk and `[DONE]` on a line of its own."""
    head, newline, last = data.rpartition(b"\n")
    return (head, True) if newline and _is_done(last.strip()) else (data, False)


def wrong_type(content_type: str) -> UpstreamError:
    """For a reply that is no event stream. What is not the name of a type is not repeated."""
    named = content_type if _TYPE.fullmatch(content_type) else "another type"
    return UpstreamError("bad_upstream_response", f"The upstream answered with {named} instead of an event stream.")


def _truncated() -> UpstreamError:
    return UpstreamError("upstream_truncated", "The upstream's stream ended before the completion did.")

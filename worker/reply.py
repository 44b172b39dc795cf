"""An upstream's reply: from bytes to chunks, and what its end means. No I/O and no clock.

A reply is complete once each choice that was asked for has its finish reason, or `[DONE]` came behind a chunk. Nothing
that comes later, and no way in which the connection ends, takes that back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from broker.events import USAGE
from worker.chunks import BadChunk, Chunk, examine
from worker.failures import UpstreamError, reported
from worker.sse import BOM, LineTooLong, SseEvent, SseSplitter

DONE = b"[done]"
EVENT_STREAM = "text/event-stream"
_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


class Reply:
    """Feed it what was read; `done` says that nothing more is needed, `error` why it will never be complete."""

    __slots__ = (
        "_begun", "_choices", "_content_type", "_finished", "_longest", "_secrets", "_splitter", "_streamed",
        "_whole",         "done", "error", "seen",
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
        self._whole: bytearray | None = None
        self._finished: set[int] = set()
        self.done = False
        self.seen = False
        """Whether there was a chunk."""
        self.error: UpstreamError | None = None

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
                return []
            return self._take(self._splitter.feed(read))
        except LineTooLong:
            self._fail(UpstreamError("output_too_large", f"The upstream sent an event of over {self._longest} bytes."))
            return []

    def end(self) -> list[Chunk]:
        """The response came to its clean end: return the chunks that this completes."""
        chunks: list[Chunk] = []
        if self._whole is not None:
            chunks = self._take([(b"", bytes(self._whole))])
            self.done = self.done or (self.seen and self.error is None)
        if self.finished and self.seen:
            self.done = True
        elif not self.done and self.error is None:
            self._fail(_truncated() if self.seen else self._empty())
        return chunks

    def settle(self) -> None:
        """It is complete, and nothing more is waited for."""
        self.done = True

    def break_off(self, error: UpstreamError) -> None:
        """The connection broke: harmless if the reply is complete."""
        self._fail(error)

    def _look_at(self, read: bytes) -> None:
        """What begins as JSON is no stream, whatever its type says: an error, or a completion in one piece."""
        text = read.lstrip(BOM + b" \t\r\n")
        if text:
            self._begun = True
            if text[:1] in (b"{", b"["):
                self._whole = bytearray()

    def _fail(self, error: UpstreamError) -> None:
        if self.finished and self.seen:
            self.done = True
        elif self.error is None:
            self.error = error

    def _take(self, events: list[SseEvent]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for name, data in events:
            if data[:1] in (b"[", b'"', b" ") and data.strip(b' \t"').lower() == DONE:
                self._end_marked()
                break
            try:
                chunk = examine(data, name, streamed=self._streamed)
            except BadChunk as error:
                self._fail(UpstreamError("bad_upstream_response", f"The upstream sent a bad chunk: {error}."))
                break
            if chunk is None:
                continue
            if chunk.tokens and not self._streamed:
                self._streamed = b'"message"' not in data
            if not self._took(chunk, chunks):
                break
        return chunks

    def _took(self, chunk: Chunk, chunks: list[Chunk]) -> bool:
        """Whether the reply goes on behind it."""
        if chunk.error is not None:
            if chunk.tokens or chunk.finished:  # the text that comes with an error is text
                chunks.append(chunk)
                self.seen = True
            self._fail(reported(chunk.error, self._secrets))
            return False
        chunks.append(chunk)
        self.seen = True
        if chunk.finished:
            self._finished.update(chunk.finished)
        elif chunk.type == USAGE and self.finished:  # the last thing that an upstream has to say
            self.done = True
        return not self.done

    def _end_marked(self) -> None:
        """`[DONE]` alone is no answer."""
        if self.seen:
            self.done = True
        else:
            self._fail(self._empty())

    def _empty(self) -> UpstreamError:
        if self._content_type == EVENT_STREAM:
            return UpstreamError("bad_upstream_response", "The upstream's stream was empty.")
        return wrong_type(self._content_type)


def wrong_type(content_type: str) -> UpstreamError:
    """For a reply that is no event stream. What is not the name of a type is not repeated."""
    named = content_type if _TYPE.fullmatch(content_type) else "another type"
    return UpstreamError("bad_upstream_response", f"The upstream answered with {named} instead of an event stream.")


def _truncated() -> UpstreamError:
    return UpstreamError("upstream_truncated", "The upstream's stream ended before the completion did.")

"""OpenAI's chat.completions stream: the upstream's chunks unchanged, then `[DONE]`.

What the stock SDKs accept was tested (openai-python 1.0 to 3.54, openai-node 7.57) and decides the details: no
stand-alone `id:` or `retry:` block, no `event:`, and a heartbeat is a comment attached to the next frame, since after
an `id:` a separate comment block ends openai-python's stream with a JSONDecodeError. The SDKs take a clean end for
success, so `[DONE]` follows `completed` only and every other end is an error frame.
"""

from __future__ import annotations

from typing import Any

import msgspec

from broker.events import CANCELLED, CHUNK, COMPLETED, FAILED, GONE, USAGE, Event
from broker.fanout.dialect import EndReason, Stateless
from broker.ids import Cursor


class Chat(Stateless):
    """The chat dialect: one attempt, with or without the usage chunk. A reader cannot take back text that it has
    received.

    `bare`: only `data:` lines and empty lines between them, as OpenAI itself sends, for clients that parse a stream
    line by line: no ids, so it cannot be resumed, and no heartbeats.
    """

    name = "chat"
    crosses_attempts = False

    def __init__(self, *, usage: bool, bare: bool = False) -> None:
        self._usage = usage
        self._bare = bare
        self.heartbeat = b"" if bare else b": hb\n"

    def frame(self, event: Event) -> bytes:
        if event.type == CHUNK or (event.type == USAGE and self._usage):
            return self._frame(event.cursor, event.data)
        if event.type == COMPLETED:
            return self._counted(event) + self._frame(event.cursor, b"[DONE]")
        if event.type == FAILED:
            return self._frame(event.cursor, event.data)
        if event.type == CANCELLED:
            return self._frame(event.cursor, CANCELLED_ERROR)
        if event.type == GONE:
            return self._frame(event.cursor, _error(EndReason.GONE))
        return b""

    def _frame(self, cursor: Cursor, data: bytes) -> bytes:
        data = _on_one_line(data)
        return b"data: %b\n\n" % data if self._bare else b"id: %d-%d\ndata: %b\n\n" % (*cursor, data)

    def _counted(self, event: Event) -> bytes:
        """Return the requested usage chunk if the upstream sent none and the worker counted."""
        if not self._usage or b'"estimated":true' not in event.data:
            return b""
        usage: Any = msgspec.json.decode(event.data)["usage"]
        chunk: dict[str, Any] = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "",
            "choices": [],
            "usage": usage,
        }
        # The id of the previous event: a reader that resumes after it gets this chunk and [DONE], which are one event.
        before = Cursor(event.cursor.attempt, event.cursor.seq - 1)
        return self._frame(before, msgspec.json.encode(chunk))

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        return b""

    def reset(self) -> bytes:
        return b""

    def end(self, reason: EndReason) -> bytes:
        return b"data: %b\n\n" % _error(reason)


# Line breaks for `str.splitlines`, with which openai-python before 1.14 (and other readers through httpx) splits a
# stream, but not for SSE. In JSON they occur only in strings, where an escape is equivalent.
_BREAKS = ((b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"), (b"\xc2\x85", rb"\u0085"))


def _on_one_line(data: bytes) -> bytes:
    if not data.isascii():
        for raw, escaped in _BREAKS:
            data = data.replace(raw, escaped)
    return data


# Errors of streams that end although their generation did not complete: (code, message).
_ENDS: dict[str, tuple[str, str]] = {
    EndReason.RESET: (
        "generation_reset",
        "The generation restarted after a part of it was sent; request it again.",
    ),
    EndReason.DRAINING: (
        "server_draining",
        "The server restarts; the generation continues and can be read again.",
    ),
    EndReason.STORAGE: (
        "storage_unavailable",
        "The log cannot be read now; the generation can be read again later.",
    ),
    EndReason.GONE: ("generation_gone", "The generation was deleted."),
    "cancelled": ("generation_cancelled", "The generation was cancelled."),
    EndReason.EXPIRED: (
        "token_expired",
        "The stream token or the API key has expired; reading can continue with a new one.",
    ),
}


def _error(reason: str) -> bytes:
    code, message = _ENDS[reason]
    kind = "authentication_error" if reason == EndReason.EXPIRED else "server_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


CANCELLED_ERROR = _error("cancelled")
CHAT = Chat(usage=False)
CHAT_WITH_USAGE = Chat(usage=True)
_BARE, _BARE_WITH_USAGE = Chat(usage=False, bare=True), Chat(usage=True, bare=True)


def chat_dialect(*, usage: bool, bare: bool) -> Chat:
    """Return the shared instance of a variant: its frames are shared by all of its readers."""
    if bare:
        return _BARE_WITH_USAGE if usage else _BARE
    return CHAT_WITH_USAGE if usage else CHAT

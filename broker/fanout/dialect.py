"""The interface between a dialect and the fan-out: the frames of a log, and the reasons for which a response ends.

A dialect is a pure function of the log, so any gateway serves any reader at any time. `begin()` gives its state before
the first event; the state frames one event after another, and has the closing bytes of a response. A feed has one
buffer for all dialects that are equal, so a dialect needs a hash, and one with parameters is a frozen dataclass or a
shared instance.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol, Self

from broker.events import Event
from broker.ids import Cursor


class EndReason(StrEnum):
    """Why a response ended. Also the value of the metric's label `reason`, and of a trace's attribute."""

    ENDED = "ended"
    """The generation's terminal event was written."""
    LEFT = "left"
    """The peer left."""
    STALLED = "stalled"
    """The peer took nothing for the send timeout."""
    RESET = "reset"
    """The log went back or began again, which the dialect cannot express."""
    DRAINING = "draining"
    """The gateway stops."""
    STORAGE = "storage"
    """The log cannot be read."""
    GONE = "gone"
    """The generation was deleted, or its retention is over."""
    EXPIRED = "expired"
    """The reader's token expired."""


class DialectState(Protocol):
    """The data on which the bytes after a position depend. All dialects are stateless so far (`Stateless`): one that
    folds the log (item ids, frame numbers, the whole text at the end) also needs `FrameBuffer.state_at`, which returns
    the newest state, whatever the position."""

    def frame(self, event: Event) -> bytes:
        """Return the event's bytes on the wire; b"" if the dialect does not show it. The frame of a
        terminal event contains the closing bytes of the response: `end` is not called after it."""
        ...

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        """Return a notice that the requested part of the log was trimmed; b"" if the dialect has none: the response
        then ends with `end(EndReason.STORAGE)`."""
        ...

    def reset(self) -> bytes:
        """Return a notice to discard the text shown so far, for a log without a `reset` event: Redis has lost the
        earlier attempts, and a first one follows. b"" if the dialect does not cross attempts."""
        ...

    def end(self, reason: EndReason) -> bytes:
        """Return the closing bytes of a response that ends without a terminal event: RESET, DRAINING, STORAGE, GONE or
        EXPIRED. Nothing is written after the other reasons."""
        ...

    def copy(self) -> Self:
        """Return an independent copy, in constant time: each segment of a buffer keeps the state at its start."""
        ...


class Dialect(Protocol):
    """How one kind of reader sees the log."""

    @property
    def name(self) -> str:
        """The value of the metrics' label `dialect`."""
        ...

    @property
    def crosses_attempts(self) -> bool:
        """Whether a reader that has received a part of one attempt may continue with the next, after the frame of its
        `reset` event. If not, the response ends with `end(EndReason.RESET)`; a reader that has received nothing
        continues in any case."""
        ...

    @property
    def heartbeat(self) -> bytes:
        """Bytes without meaning that may be sent between any two frames; b"" for none."""
        ...

    def begin(self) -> DialectState:
        """Return the state before the first event."""
        ...


class Stateless:
    """Base of dialects whose frames depend on nothing but their event: the dialect is its own state."""

    def begin(self) -> Self:
        return self

    def copy(self) -> Self:
        return self

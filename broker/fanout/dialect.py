"""The dialect seam: how a protocol presents a log to its readers, and why a response ends.

A dialect is a pure function of the log, so any gateway serves any reader at any time. `begin()` gives its state before
the first event; the state frames one event after another, and has the closing bytes of a response.
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
    """What the bytes after a position depend on. A dialect that folds the log (item ids, frame numbers, the whole text
    at the end) keeps it here; `frame` then changes the state."""

    def frame(self, event: Event) -> bytes:
        """Return the event's bytes on the wire; b"" if the dialect does not show it."""
        ...

    def gap(self, requested: Cursor, earliest: Cursor, latest: Cursor) -> bytes:
        """Return a notice that the requested part of the log was trimmed; b"" if the dialect has none."""
        ...

    def reset(self) -> bytes:
        """Return a notice that what was shown is no longer in the log and a first attempt follows; b"" if the
        dialect's readers stay with one attempt."""
        ...

    def end(self, reason: EndReason) -> bytes:
        """Return the closing bytes of a response that ends although its generation has not."""
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
        """Whether a reader that has received a part of one attempt may continue with the next (it gets a `reset`)."""
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

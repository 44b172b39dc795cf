"""The journal of calls, in which a test sees the requests that reached the upstream, and the counts of calls."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_CALLS = 10_000  # maximum number of calls; a development server may run for weeks
_UNLISTED = frozenset({"rate_headers", "place"})


@dataclass(slots=True)
class Counts:
    """What the simulator has counted since its start or the last reset."""

    calls: int = 0
    refused: int = 0
    """Calls refused with 429 because of the quota."""
    unavailable: int = 0
    """Calls refused because of an outage."""
    in_flight: int = 0
    """Accepted calls whose response has not ended; it does not change at a reset."""
    max_in_flight: int = 0


@dataclass(slots=True)
class Call:
    """One call of `POST /v1/chat/completions`; times are unix seconds."""

    number: int
    started_at: float
    body_sha256: str
    headers: Mapping[str, str | bool | None]
    model: str | None = None
    seed: int | None = None
    label: str = ""
    stream: bool | None = None
    fault: str = ""
    parameters: tuple[str, ...] = ()
    continues: str = ""
    """How the request asks to go on after the start of the reply: `plain`, `prefix`, `continue_final_message`."""
    first_byte_at: float | None = None
    """Time at which the first byte of the body was written."""
    ended_at: float | None = None
    chunks_sent: int = 0
    """Content chunks written, all choices together; in a reply without content, tool or refusal chunks."""
    outcome: str | None = None
    """`completed`, `disconnected` or `fault:<name>`; None while it runs."""
    rate_headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Headers about the quota in its response."""
    place: Counts | None = None
    """The counts in which it is in flight."""

    def enter(self, counts: Counts) -> None:
        """Count the call as in flight."""
        self.place = counts
        counts.in_flight += 1
        counts.max_in_flight = max(counts.max_in_flight, counts.in_flight)

    def leave(self) -> None:
        """Stop counting the call as in flight. Called before the last bytes of the response are written: a client that
        has them may send its next call at once."""
        counts, self.place = self.place, None
        if counts is not None:
            counts.in_flight -= 1

    def mark_started(self) -> None:
        self.first_byte_at = self.first_byte_at or time.time()

    def end(self, outcome: str) -> None:
        """Record the outcome of the call; only the first one counts."""
        if self.outcome is None:
            self.outcome, self.ended_at = outcome, time.time()


@dataclass(slots=True)
class Journal:
    """The latest calls, and the number of occurrences of each fault with `times`."""

    calls: deque[Call] = field(default_factory=lambda: deque[Call](maxlen=MAX_CALLS))
    fault_counts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    counts: Counts = field(default_factory=Counts)
    numbered: int = 0

    def open(self, body_sha256: str, headers: Mapping[str, str | bool | None]) -> Call:
        self.numbered += 1
        self.counts.calls += 1
        call = Call(self.numbered, time.time(), body_sha256, headers)
        self.calls.append(call)
        return call

    def applies(self, fault: str, times: int | None, whom: str) -> bool:
        """Count and return whether this call has the fault: the first `times` calls of `whom` (a label or a seed)."""
        if times is None or self.fault_counts[fault, whom] < times:
            self.fault_counts[fault, whom] += 1
            return True
        return False

    def listed(self, label: str | None) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in asdict(call).items() if name not in _UNLISTED}
            for call in self.calls
            if label is None or call.label == label
        ]

    def reset(self) -> None:
        """Remove all calls and counts; running calls are no longer listed, but still counted as in flight."""
        self.calls.clear()
        self.fault_counts.clear()
        self.numbered = 0
        counts = self.counts
        counts.calls = counts.refused = counts.unavailable = 0
        counts.max_in_flight = counts.in_flight

"""The journal of calls, in which a test sees the requests that reached the upstream."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_CALLS = 10_000  # maximum number of calls; a development server may run for weeks


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
    first_byte_at: float | None = None
    """Time at which the first byte of the body was written."""
    ended_at: float | None = None
    chunks_sent: int = 0
    """Content chunks written, all choices together; in a reply without content, tool or refusal chunks."""
    outcome: str | None = None
    """`completed`, `disconnected` or `fault:<name>`; None while it runs."""

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
    numbered: int = 0

    def open(self, body_sha256: str, headers: Mapping[str, str | bool | None]) -> Call:
        self.numbered += 1
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
        return [asdict(call) for call in self.calls if label is None or call.label == label]

    def reset(self) -> None:
        """Remove all calls and counts; running calls are no longer listed."""
        self.calls.clear()
        self.fault_counts.clear()
        self.numbered = 0

"""Counters of a worker. They are updated per attempt and per upstream call, never per token.

The gaps between tokens are computed from the attempts, which hold the arrival time of each event: at each scrape and at
an attempt's end.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from operator import sub
from typing import Any, get_args

import msgspec

from broker.events import WaitingReason
from broker.runtime.counters import GAPS, WAITS, Count, Histogram, Labels
from broker.settings.settings import Settings
from broker.settings.upstreams import ModelLabels
from worker.attempt import Attempt
from worker.upstream.errors import UpstreamError

# Codes that are used as label values. Codes that upstreams invent are counted as "other".
CODES = frozenset(
    {
        *("bad_upstream_response", "internal_error", "model_not_found", "output_too_large", "storage_full", "timeout"),
        *("upstream_auth", "upstream_error", "upstream_rate_limited", "upstream_timeout", "upstream_truncated"),
        "upstream_unreachable",
    }
)
WAITING_REASONS = frozenset(get_args(WaitingReason))
RESET_REASONS = frozenset({"worker_lost", "worker_stopped", "upstream_error"})


@dataclass(slots=True)
class _Progress:
    """Part of an attempt's events that has been counted."""

    labels: Labels
    began: float
    events: int = 0
    bytes: int = 0
    last_ms: int | None = None


class WorkerCounters:
    """Counters and histograms by upstream and model."""

    def __init__(self, settings: Settings) -> None:
        self._labels = ModelLabels(settings)
        self._progress: dict[Attempt, _Progress] = {}
        self.attempts, self.resets, self.retries, self.continuations, self.ended = (Count() for _ in range(5))
        self.tokens, self.bytes = Count(), Count()
        self.queue_waits = Histogram(WAITS)
        self.first_tokens, self.attempt_seconds = Histogram(WAITS), Histogram(WAITS)
        self.gaps = Histogram(GAPS)

    def claimed(self, attempt: Attempt) -> None:
        self._progress[attempt] = _Progress(self._labels.of(attempt.claim.model), time.monotonic())

    def begun(self, attempt: Attempt) -> None:
        """Record that the upstream has accepted the call of an attempt."""
        claim = attempt.claim
        self.attempts[self._progress[attempt].labels] += 1
        if claim.ordinal == 1:
            reason = claim.meta.get(b"wr", b"").decode()
            waited = max(0.0, claim.claimed_at - claim.order_ms / 1000)
            self.queue_waits[(reason if reason in WAITING_REASONS else "queued",)].observe(waited)
        else:
            reason = claim.meta.get(b"why", b"").decode()
            self.resets[(reason if reason in RESET_REASONS else "other",)] += 1

    def first_token(self, attempt: Attempt, called: float) -> None:
        """Record the first token of a call made at `called` (monotonic time)."""
        self.first_tokens[self._progress[attempt].labels].observe(time.monotonic() - called)

    def retried(self, attempt: Attempt, error: UpstreamError) -> None:
        """Record that a call failed before the first token, and its generation went back to the queue."""
        self.retries[(self._progress[attempt].labels[0], _code(error))] += 1

    def continued(self, attempt: Attempt) -> None:
        """Record that another call goes on after the text of one that broke off."""
        self.continuations[self._progress[attempt].labels] += 1

    def finished(self, attempt: Attempt, failure: UpstreamError | None) -> None:
        """Record that the attempt wrote the generation's terminal event."""
        labels = self._progress[attempt].labels
        status = "completed" if failure is None else "failed"
        self.ended[(*labels, status, "" if failure is None else _code(failure))] += 1
        self.attempt_seconds[labels].observe(time.monotonic() - self._progress[attempt].began)
        usage: dict[str, Any] = msgspec.json.decode(attempt.ending.usage) if attempt.ending else {}
        for kind in ("prompt", "completion"):
            tokens = usage.get(f"{kind}_tokens")
            if isinstance(tokens, int) and tokens > 0:
                self.tokens[(*labels, kind)] += tokens

    def closed(self, attempt: Attempt) -> None:
        """Record the end of an attempt, whatever its outcome."""
        self._count_new(attempt, self._progress.pop(attempt))

    def update(self) -> None:
        """Count the events that arrived since the last call."""
        for attempt, progress in self._progress.items():
            self._count_new(attempt, progress)

    def _count_new(self, attempt: Attempt, progress: _Progress) -> None:
        self.bytes[progress.labels] += max(0, attempt.size - progress.bytes)
        times = attempt.token_times(progress.events)
        progress.events, progress.bytes = attempt.count, attempt.size
        if not times:
            return
        before = [times[0] if progress.last_ms is None else progress.last_ms, *times]
        gaps = Counter(map(sub, times, before))
        if progress.last_ms is None:
            gaps[0] -= 1  # the first token has no gap before it
        progress.last_ms = times[-1]
        for gap, count in gaps.items():
            self.gaps[progress.labels].observe(gap / 1000, count)


def _code(error: UpstreamError) -> str:
    return error.code if error.code in CODES else "other"

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
from broker.history.recorder import Figures, Series
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
    series: Series
    began: float
    events: int = 0
    tokens: int = 0
    bytes: int = 0
    last_ms: int | None = None


class WorkerCounters:
    """Counters and histograms by upstream and model."""

    def __init__(self, settings: Settings, history: Figures | None = None) -> None:
        self._labels = ModelLabels(settings)
        self._history = Figures() if history is None else history
        self._progress: dict[Attempt, _Progress] = {}
        self.attempts, self.resets, self.retries, self.continuations, self.ended = (Count() for _ in range(5))
        self.tokens, self.bytes = Count(), Count()
        self.queue_waits = Histogram(WAITS)
        self.first_tokens, self.attempt_seconds = Histogram(WAITS), Histogram(WAITS)
        self.gaps = Histogram(GAPS)

    def claimed(self, attempt: Attempt) -> None:
        claim = attempt.claim
        series = Series(claim.tenant, claim.model, claim.upstream)
        self._progress[attempt] = _Progress(self._labels.of(claim.model), series, time.monotonic())

    def begun(self, attempt: Attempt) -> None:
        """Record that the upstream has accepted the call of an attempt."""
        claim = attempt.claim
        self.attempts[self._progress[attempt].labels] += 1
        self._history.started(self._progress[attempt].series)
        if claim.ordinal == 1:
            reason = claim.meta.get(b"wr", b"").decode()
            waited = max(0.0, claim.claimed_at - claim.order_ms / 1000)
            self.queue_waits[(reason if reason in WAITING_REASONS else "queued",)].observe(waited)
        else:
            reason = claim.meta.get(b"why", b"").decode()
            self.resets[(reason if reason in RESET_REASONS else "other",)] += 1

    def first_token(self, attempt: Attempt, called: float) -> None:
        """Record the first token of a call made at `called` (monotonic time)."""
        now, progress, claim = time.monotonic(), self._progress[attempt], attempt.claim
        self.first_tokens[progress.labels].observe(now - called)
        waited = max(0.0, claim.claimed_at - claim.order_ms / 1000)
        self._history.first_token(progress.series, waited + now - progress.began)

    def retried(self, attempt: Attempt, error: UpstreamError) -> None:
        """Record that a call failed before the first token, and its generation went back to the queue."""
        self.retries[(self._progress[attempt].labels[0], _code(error))] += 1
        self._history.returned(self._progress[attempt].series, error.code or "other", attempt.claim.gid)

    def continued(self, attempt: Attempt) -> None:
        """Record that another call goes on after the text of one that broke off."""
        self.continuations[self._progress[attempt].labels] += 1

    def finished(self, attempt: Attempt, failure: UpstreamError | None) -> None:
        """Record that the attempt wrote the generation's terminal event."""
        labels, series = self._progress[attempt].labels, self._progress[attempt].series
        if failure is None:
            self._history.completed(series)
        else:
            self._history.failed(series, failure.code or "other", attempt.claim.gid)
        status = "completed" if failure is None else "failed"
        self.ended[(*labels, status, "" if failure is None else _code(failure))] += 1
        self.attempt_seconds[labels].observe(time.monotonic() - self._progress[attempt].began)
        usage: dict[str, Any] = msgspec.json.decode(attempt.ending.usage) if attempt.ending else {}
        self._count_unseen(attempt, usage)
        for kind in ("prompt", "completion"):
            tokens = usage.get(f"{kind}_tokens")
            if isinstance(tokens, int) and tokens > 0:
                self.tokens[(*labels, kind)] += tokens

    def _count_unseen(self, attempt: Attempt, usage: dict[str, Any]) -> None:
        """Add the tokens of the usage that were not counted as they came: a chunk may have several."""
        self._count_tokens(attempt, self._progress[attempt])
        total = usage.get("completion_tokens")
        if isinstance(total, int):
            self._history.tokens(self._progress[attempt].series, total - attempt.token_count)

    def closed(self, attempt: Attempt) -> None:
        """Record the end of an attempt, whatever its outcome."""
        self._count_new(attempt, self._progress.pop(attempt))

    def update(self) -> None:
        """Count the events that arrived since the last call."""
        for attempt, progress in self._progress.items():
            self._count_new(attempt, progress)

    def count_tokens(self) -> None:
        """Add the tokens that arrived since the last call to the history. It costs the same for any number of them."""
        for attempt, progress in self._progress.items():
            self._count_tokens(attempt, progress)

    def _count_tokens(self, attempt: Attempt, progress: _Progress) -> None:
        self._history.tokens(progress.series, attempt.token_count - progress.tokens)
        progress.tokens = attempt.token_count

    def _count_new(self, attempt: Attempt, progress: _Progress) -> None:
        self.bytes[progress.labels] += max(0, attempt.size - progress.bytes)
        times = attempt.token_times(progress.events)
        progress.events, progress.bytes = attempt.count, attempt.size
        self._count_tokens(attempt, progress)
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

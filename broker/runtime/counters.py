"""Counters and histograms as plain integers, converted to metrics only when they are scraped.

A call of a metrics library costs about a microsecond, as much as serving a subscriber. `Buckets.observe` costs a fifth
of that; it is called once per batch, pass, command or generation, never once per reader.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

ROUND_TRIPS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds in seconds for Redis commands and for the latency that the broker adds to a token."""

GAPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds in seconds for the time between two tokens: finest for streams of 10 to 100 tokens a second."""

WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Bounds in seconds for the time in the queue, to the first token, and of a whole generation."""

# Help texts of metrics that gateways and workers both export, each for its own work.
ENDED = "Generations that ended, by status and error code; code queue_timeout: their waiting lasted too long."
REDIS = "Duration of commands and pipelines, from the call to the reply."

Labels = tuple[str, ...]


class Buckets:
    """A histogram: the number of values per bucket, not cumulative, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Count(defaultdict[Labels, int]):
    """A counter, keyed by label values."""

    def __init__(self, known: Mapping[Labels, int] | None = None) -> None:
        super().__init__(int, known or {})


class Histogram(defaultdict[Labels, Buckets]):
    """Histograms, keyed by label values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__(lambda: Buckets(bounds))

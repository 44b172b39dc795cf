"""A histogram of times whose buckets grow by a constant factor, so that the counts of several processes can be added.

A bucket is 2^(1/4) = 1.19 times as wide as the one before, from 1 ms to 17 minutes. A percentile is reported as the
geometric middle of its bucket: it is wrong by at most a factor of 2^(1/8), 9 %, at any magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PER_DOUBLING = 4
LAST = 80


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time: 0 up to 1 ms, LAST above 15 minutes."""
    ms = seconds * 1000
    return min(LAST, math.ceil(PER_DOUBLING * math.log2(ms))) if ms > 1 else 0


def middle_of(bucket: int) -> float:
    """Return the geometric middle of a bucket, in seconds."""
    return 2 ** ((bucket - 0.5) / PER_DOUBLING) / 1000 if bucket else 0.001


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """Return the time that this share of the values does not exceed, in seconds; None if there are no values."""
    wanted = max(1, math.ceil(share * sum(counts.values())))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            return middle_of(bucket)
    return None

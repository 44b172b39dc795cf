"""The histogram of the history."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.history.buckets import LAST, bucket_of, percentile

TIMES = st.lists(st.floats(0.002, 800), min_size=1, max_size=200)


@given(TIMES, st.floats(0, 1))
def test_a_percentile_is_exact_to_nine_percent(times: list[float], share: float) -> None:
    exact = sorted(times)[max(1, math.ceil(share * len(times))) - 1]
    found = percentile(Counter(map(bucket_of, times)), share)
    assert found is not None
    assert abs(math.log2(found / exact)) <= 1 / 8 + 1e-9


def test_the_ends_of_the_range() -> None:
    assert percentile({}, 0.5) is None
    assert (bucket_of(0), bucket_of(0.0005), bucket_of(0.001)) == (0, 0, 0)
    assert bucket_of(1e9) == LAST
    assert percentile({0: 3}, 0.95) == 0.001

"""Rate limits in the headers of a response."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.simulator.quota import duration
from worker.upstream.rate_limits import LONGEST, RateLimit, RateLimits, read_rate_limits, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1m30.5s", 90.5),
        ("120ms", 0.12),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("7.66s", 7.66),
        ("500us", 0.0005),
        ("6", 6.0),
        ("0.5", 0.5),
        (" 20S ", 20.0),
        ("0s", 0.0),
        ("99999999999ms", LONGEST),
        ("-1s", None),
        ("1x", None),
        ("1m30", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("9" * 400 + "s", LONGEST),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


def test_a_reset_can_be_a_time() -> None:
    assert seconds_of(f"{time.time() + 600:.0f}") == pytest.approx(600, abs=60)
    assert seconds_of("1500000000") == 0.0
    assert seconds_of(f"{(time.time() + 600) * 1000:.0f}") == pytest.approx(600, abs=60)
    assert seconds_of(datetime.fromtimestamp(time.time() + 600, UTC).isoformat()) == pytest.approx(600, abs=60)
    assert seconds_of("2025-08-21T12:40:59Z") == 0.0
    assert seconds_of("2025-08-21T12:40:59") is None  # of an unknown place


@given(st.floats(0, 86400))
def test_durations_of_the_simulated_upstream_are_read(seconds: float) -> None:
    assert seconds_of(duration(seconds)) == pytest.approx(seconds, abs=0.0011, rel=1e-5)


def test_limits_of_any_response_are_read() -> None:
    headers = httpx2.Headers(
        {
            "X-RateLimit-Limit-Requests": "500",
            "X-RateLimit-Remaining-Requests": "499",
            "X-RateLimit-Reset-Requests": "120ms",
            "X-RateLimit-Limit-Tokens": "30000",
            "X-RateLimit-Remaining-Tokens": "unlimited",
        }
    )
    assert read_rate_limits(headers) == RateLimits(RateLimit(500, 499, 0.12), RateLimit(30000, None, None))
    assert read_rate_limits({"retry-after": "7"}) is None
    assert read_rate_limits({"x-ratelimit-limit-requests": "500, 500;window=60"}) is None

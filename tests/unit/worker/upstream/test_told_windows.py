"""The window to which a told limit belongs, judged by what was used and when it comes back."""

from __future__ import annotations

import pytest

from worker.upstream.rate_limits import DAY, MINUTE, RateLimit, RateLimits, read_rate_limits


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        # As told by OpenAI: each unit comes back after its part of a minute.
        (RateLimit(5000, 4999, 0.012), MINUTE),
        (RateLimit(160_000, 159_976, 0.009), MINUTE),
        (RateLimit(60, 59, 1.0), MINUTE),
        (RateLimit(60, 0, 60.0), MINUTE),
        (RateLimit(3, 2, 20.0), MINUTE),
        # A limit per day, of a free account of OpenAI and of Groq.
        (RateLimit(200, 199, 432.0), DAY),
        (RateLimit(14_400, 14_370, 179.56), DAY),
        # A limit per second.
        (RateLimit(10, 9, 0.1), 1.0),
        (RateLimit(10, 0, 1.0), 1.0),
        # A fixed window, which ends for all units at once: a minute at most if it ends within a minute.
        (RateLimit(60, 59, 59.0), MINUTE),
        (RateLimit(60, 10, 30.0), 36.0),
        (RateLimit(1000, 999, 3000.0), DAY),
        # The reset is rounded up, or the time of a response is included.
        (RateLimit(500, 499, 1.0), MINUTE),
        (RateLimit(60, 0, 61.0), MINUTE),
        # Nothing can be judged: all is there, or the reset is not told, or was rounded to zero.
        (RateLimit(1000, 1000, 0.0), None),
        (RateLimit(1000, 999, 0.0), None),
        (RateLimit(1000, 1001, 3.0), None),
        (RateLimit(300, 49, None), None),
        (RateLimit(None, 49, 10.0), None),
        (RateLimit(), None),
        # The name of the header tells the window.
        (RateLimit(300, 299, 0.1, MINUTE), MINUTE),
        (RateLimit(14_400, 14_399, 6.0, DAY), DAY),
    ],
)
def test_the_window_of_a_limit(told: RateLimit, seconds: float | None) -> None:
    assert told.window == (None if seconds is None else pytest.approx(seconds, rel=0.01))


@pytest.mark.parametrize(
    ("headers", "requests", "tokens"),
    [
        (
            {"anthropic-ratelimit-requests-limit": "1000", "anthropic-ratelimit-tokens-remaining": "96000"},
            RateLimit(1000),
            RateLimit(None, 96_000),
        ),
        (
            {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-tokens-minute": "500"},
            RateLimit(60, None, None, MINUTE),
            RateLimit(None, 500, None, MINUTE),
        ),
        (
            {"x-ratelimit-limit-requests-day": "14400", "x-ratelimit-reset-requests-day": "33011.38"},
            RateLimit(14_400, None, pytest.approx(33_011.38), DAY),
            RateLimit(),
        ),
        (
            {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9", "x-ratelimit-reset": "0.1"},
            RateLimit(10, 9, 0.1),
            RateLimit(),
        ),
        (
            {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit": "7"},
            RateLimit(60),
            RateLimit(),
        ),
    ],
    ids=["Anthropic", "Mistral", "Cerebras", "Together", "precedence"],
)
def test_the_forms_of_several_servers(headers: dict[str, str], requests: RateLimit, tokens: RateLimit) -> None:
    assert read_rate_limits(headers) == RateLimits(requests, tokens)

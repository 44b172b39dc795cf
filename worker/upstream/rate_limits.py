"""What an upstream says in its headers about its rate limits, and when to call again."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

LONGEST = 7 * 86400.0  # seconds; a longer wait is reported as this
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d*)?)(ms|us|µs|ns|[dhms])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"\d+(?:\.\d*)?", re.ASCII)
_EPOCH = 1e9  # a larger reset is a time in unix seconds, not a duration
_EPOCH_MS = 1e11  # and a larger one than this a time in unix milliseconds (OpenRouter)
MINUTE, DAY = 60.0, 86400.0
_SLACK = 1.1  # a reset may be rounded up, and is older than the response

# Headers of a limit, in the order of precedence: form of the name, and seconds of its window if the name tells it.
# OpenAI, Azure, Groq and most servers; Anthropic; Mistral; Cerebras; Together and OpenRouter.
_REQUESTS = (
    ("x-ratelimit-{}-requests", None),
    ("anthropic-ratelimit-requests-{}", None),
    ("x-ratelimit-{}-req-minute", MINUTE),
    ("x-ratelimit-{}-requests-minute", MINUTE),
    ("x-ratelimit-{}-requests-day", DAY),
    ("x-ratelimit-{}", None),
)
_TOKENS = (
    ("x-ratelimit-{}-tokens", None),
    ("anthropic-ratelimit-tokens-{}", None),
    ("x-ratelimit-{}-tokens-minute", MINUTE),
)


class RateLimit(NamedTuple):
    """One limit; None: not told."""

    limit: int | None = None
    """Units of a window: mostly a minute, but Groq's requests are those of a day, and Together's those of a second."""
    remaining: int | None = None
    reset: float | None = None
    """Seconds until all units are available again."""
    named_window: float | None = None
    """Seconds of the window, if the name of the header tells it."""

    @property
    def window(self) -> float | None:
        """Seconds in which all units come back; None if it cannot be judged. In a bucket that refills evenly, those
        that were used come back until the reset. A fixed window ends with the reset: shortly after its beginning this
        looks like a longer one, so a reset within a minute is one of a minute at most."""
        if self.named_window is not None:
            return self.named_window
        if self.limit is None or self.remaining is None or self.reset is None:
            return None
        used = self.limit - self.remaining
        if used <= 0 or self.reset <= 0:
            return None
        evenly = self.reset * self.limit / used
        if self.reset <= MINUTE * _SLACK:
            return min(evenly, MINUTE)
        return min(max(evenly, MINUTE), DAY)


class RateLimits(NamedTuple):
    """The limits of calls and of tokens."""

    requests: RateLimit
    tokens: RateLimit


def read_rate_limits(headers: Mapping[str, str]) -> RateLimits | None:
    """Return the limits in the headers of any response; None if it tells none."""
    found = RateLimits(_read(headers, _REQUESTS), _read(headers, _TOKENS))
    return None if found == _NOTHING else found


_NOTHING = RateLimits(RateLimit(), RateLimit())


def _read(headers: Mapping[str, str], forms: Sequence[tuple[str, float | None]]) -> RateLimit:
    for name, window in forms:
        limit, remaining, reset = (headers.get(name.format(part)) for part in ("limit", "remaining", "reset"))
        found = RateLimit(_whole(limit), _whole(remaining), seconds_of(reset))
        if found != RateLimit():
            return found._replace(named_window=window)
    return RateLimit()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the next call may succeed, by `retry-after-ms`, else by `Retry-After` (seconds or date),
    else until the reset of limits of which nothing remains. None if no header tells it."""
    ms = _number(headers.get("retry-after-ms"))
    if ms is not None:
        return min(ms / 1000, LONGEST)
    told = _retry_after(headers.get("retry-after"))
    if told is not None:
        return min(told, LONGEST)
    limits = read_rate_limits(headers) or ()
    resets = [limit.reset for limit in limits if limit.remaining == 0 and limit.reset is not None]
    return max(resets, default=None)


def seconds_of(text: str | None) -> float | None:
    """Parse a duration such as `1m30.5s`, `120ms` or `6` (seconds), or a time: unix seconds or milliseconds, or ISO
    8601 with an offset. None for other text."""
    text = (text or "").strip()
    seconds = _number(text)
    if seconds is None:
        seconds = _duration(text.lower())
        return None if seconds is None else min(seconds, LONGEST)
    if seconds > _EPOCH:
        seconds = max(0.0, (seconds / 1000 if seconds > _EPOCH_MS else seconds) - time.time())
    return min(seconds, LONGEST)


def _duration(text: str) -> float | None:
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    with suppress(ValueError):
        when = datetime.fromisoformat(text.upper())
        return max(0.0, when.timestamp() - time.time()) if when.tzinfo else None
    return None


def _retry_after(value: str | None) -> float | None:
    seconds = _number(value)
    if seconds is not None or not value:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    """Parse a number that is not negative; no exponent, sign or name such as `nan`."""
    text = (text or "").strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)

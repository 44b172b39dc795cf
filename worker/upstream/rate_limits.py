"""What an upstream says in its headers about its rate limits, and when to call again."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

LONGEST = 7 * 86400.0  # seconds; a longer wait is reported as this
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d*)?)(ms|us|µs|ns|[dhms])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"\d+(?:\.\d*)?", re.ASCII)
_EPOCH = 1e9  # a larger reset is a time in unix seconds, not a duration


class RateLimit(NamedTuple):
    """One limit; None: not told."""

    limit: int | None = None
    """Units per minute."""
    remaining: int | None = None
    reset: float | None = None
    """Seconds until all units are available again."""


class RateLimits(NamedTuple):
    """The limits of calls and of tokens."""

    requests: RateLimit
    tokens: RateLimit


def read_rate_limits(headers: Mapping[str, str]) -> RateLimits | None:
    """Return the limits in the headers of any response, in OpenAI's form; None if it tells none."""
    found = RateLimits(_read(headers, "requests"), _read(headers, "tokens"))
    return None if found == _NOTHING else found


_NOTHING = RateLimits(RateLimit(), RateLimit())


def _read(headers: Mapping[str, str], name: str) -> RateLimit:
    limit, remaining, reset = (headers.get(f"x-ratelimit-{part}-{name}") for part in ("limit", "remaining", "reset"))
    return RateLimit(_whole(limit), _whole(remaining), seconds_of(reset))


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
    """Parse a duration such as `1m30.5s`, `120ms` or `6` (seconds), or a time in unix seconds; None for other text."""
    text = (text or "").strip().lower()
    seconds = _number(text)
    if seconds is None:
        if not _DURATION.fullmatch(text):
            return None
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    elif seconds > _EPOCH:
        seconds = max(0.0, seconds - time.time())
    return min(seconds, LONGEST)


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

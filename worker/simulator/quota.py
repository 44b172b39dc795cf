"""The quota and the outages of the simulated upstream, which tests change while it runs.

Rates are token buckets, as OpenAI's: a full bucket admits the calls of a minute at once and refills evenly.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from worker.simulator.calls import Call, Counts
from worker.simulator.directives import BadRequest, ChatRequest
from worker.simulator.faults import Refusal

Whole = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]

OVER_QUOTA = Refusal(429, "requests", "rate_limit_exceeded", "Rate limit reached for requests.")
OVER_TOKENS = Refusal(429, "tokens", "rate_limit_exceeded", "Rate limit reached for tokens.")


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the upstream admits; the package's docstring gives the meanings of the fields."""

    concurrency: Whole | None = None
    requests_per_minute: Whole | None = None
    tokens_per_minute: Whole | None = None
    minute: Annotated[float, Meta(gt=0)] = 60.0
    rate_headers: bool = True
    retry_after: Seconds | None = None
    retry_after_ms: Whole | None = None
    outage: bool | Seconds = False
    outage_status: Annotated[int, Meta(ge=400, le=599)] = 503
    outage_retry_after: Seconds | None = None
    header_delay: Seconds = 0.0


def read_quota(raw: bytes, base: Quota | None = None) -> Quota:
    """Parse a quota. `base`: the quota whose fields apply where `raw` has none; default: no limits. Raises
    BadRequest."""
    try:
        given = msgspec.json.decode(raw, type=dict[str, Any])
        return msgspec.convert({**(msgspec.structs.asdict(base) if base else {}), **given}, Quota)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"Invalid quota: {error}") from error


@dataclass(slots=True)
class Bucket:
    """A token bucket with room for `limit` units, which refill in `minute` seconds."""

    limit: int
    minute: float
    level: float
    at: float

    @classmethod
    def full(cls, limit: int | None, minute: float) -> "Bucket | None":
        return None if limit is None else cls(limit, minute, limit, time.monotonic())

    def refill(self) -> None:
        now = time.monotonic()
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / self.minute)
        self.at = now

    def headers(self, name: str) -> dict[str, str]:
        """Return OpenAI's headers: limit, units left, time until the bucket is full."""
        missing = (self.limit - self.level) * self.minute / self.limit if self.limit else self.minute
        return {
            f"x-ratelimit-limit-{name}": str(self.limit),
            f"x-ratelimit-remaining-{name}": str(int(self.level)),
            f"x-ratelimit-reset-{name}": duration(missing),
        }


def duration(seconds: float) -> str:
    """Format a time as OpenAI does: `120ms`, `6.5s`, `1m30.5s`, `2h0m5s`; rounded up to the millisecond."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


class Gate:
    """Admits or refuses calls by the current quota."""

    def __init__(self, quota: Quota, counts: Counts) -> None:
        self._counts = counts
        self.set(quota)

    @property
    def quota(self) -> Quota:
        """The quota as it was set; an outage that has ended is false."""
        ended = self._quota.outage is not False and not self._is_out()
        return msgspec.structs.replace(self._quota, outage=False) if ended else self._quota

    def set(self, quota: Quota) -> None:
        """Apply another quota. Its buckets are full, and an outage of some seconds begins now."""
        self._quota = quota
        self._requests = Bucket.full(quota.requests_per_minute, quota.minute)
        self._tokens = Bucket.full(quota.tokens_per_minute, quota.minute)
        outage = quota.outage
        self._out_until = math.inf if outage is True else time.monotonic() + outage

    def refusal(self, call: Call, chat: ChatRequest) -> tuple[Refusal, Mapping[str, str]] | None:
        """Return the error response for a call that is not admitted, and its headers. An admitted call counts as in
        flight."""
        quota = self._quota
        if self._is_out():
            self._counts.unavailable += 1
            error = Refusal(quota.outage_status, "server_error", "overloaded", "The server is currently unavailable.")
            return error, retry_headers(quota.outage_retry_after, None)
        refused = self._take(chat.prompt_tokens + chat.n * chat.length)
        call.rate_headers = self._rate_headers() if quota.rate_headers else {}
        if refused is not None:
            self._counts.refused += 1
            return refused, retry_headers(quota.retry_after, quota.retry_after_ms)
        call.enter(self._counts)
        return None

    def _is_out(self) -> bool:
        return time.monotonic() < self._out_until

    def _take(self, tokens: int) -> Refusal | None:
        """Take a call's units from the buckets, all or none. A call with more tokens than a bucket holds needs a full
        one."""
        if self._quota.concurrency is not None and self._counts.in_flight >= self._quota.concurrency:
            return OVER_QUOTA
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.refill()
        if self._requests is not None and self._requests.level < 1:
            return OVER_QUOTA
        if self._tokens is not None and self._tokens.level < min(tokens, self._tokens.limit):
            return OVER_TOKENS
        if self._requests is not None:
            self._requests.level -= 1
        if self._tokens is not None:
            self._tokens.level -= min(tokens, self._tokens.limit)
        return None

    def _rate_headers(self) -> dict[str, str]:
        headers = self._requests.headers("requests") if self._requests is not None else {}
        return headers | (self._tokens.headers("tokens") if self._tokens is not None else {})


def retry_headers(seconds: float | None, ms: int | None) -> dict[str, str]:
    """Return the headers that say when to call again."""
    headers = {} if seconds is None else {"Retry-After": f"{seconds:g}"}
    return headers if ms is None else headers | {"retry-after-ms": str(ms)}

"""Reads the history: the figures of a tenant, or of all, by minute."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from broker.history.buckets import percentile
from broker.history.records import FirstTokens, HistoryError, HistoryMinute, HistoryRecord, HistoryTotals
from broker.ids import ALL_TENANTS
from broker.redis.client import Redis
from broker.store import keys

LONGEST = 120
"""Maximum number of minutes."""
MOST_ERRORS = 100
_COUNTS = {"started": "s", "completed": "d", "failed": "f", "cancelled": "x", "tokens": "t"}


class Wanted(NamedTuple):
    """What to read; None = of all models, upstreams."""

    tenant: str
    model: str | None = None
    upstream: str | None = None

    def matches(self, model: str, upstream: str) -> bool:
        return self.model in (None, model) and self.upstream in (None, upstream)

    @property
    def knows_depth(self) -> bool:
        return self.model is None and (self.upstream is None or self.tenant == ALL_TENANTS)


class _Error(NamedTuple):
    failed: int = 0
    returned: int = 0
    last_ms: int = 0
    sample: str = ""

    def with_more(self, other: _Error) -> _Error:
        newest = max(self, other, key=lambda one: one.last_ms)
        return _Error(self.failed + other.failed, self.returned + other.returned, newest.last_ms, newest.sample)


class _Minute:
    """A parsed hash, reduced to what is wanted."""

    def __init__(self, flat: Sequence[bytes], wanted: Wanted, name_of: Callable[[str], str]) -> None:
        self._wanted = wanted
        self._name_of = name_of
        self.counts: Counter[str] = Counter()
        self.buckets: Counter[int] = Counter()
        self.errors: dict[tuple[str, str, str], _Error] = {}
        self.depth = 0
        fields = {
            name.decode(errors="replace"): value.decode(errors="replace")
            for name, value in zip(flat[::2], flat[1::2], strict=True)
        }
        self.series = {"0": ("", "")}
        for name, value in fields.items():
            if name.startswith("#") and "\0" in name:
                model, _, upstream = name[1:].partition("\0")
                self.series[value] = (model, upstream)
        for name, value in fields.items():
            self._take(name, value, fields)

    def _take(self, name: str, value: str, fields: dict[str, str]) -> None:
        if name[0].isdigit():
            if self._is_wanted(name):
                self._add(value)
        elif name.startswith("f:"):
            _, number, code = name.split(":", 2)
            if self._is_wanted(number):
                at, _, sample = fields.get(f"l:{number}:{code}", "0 ").partition(" ")
                returned = int(fields.get(f"r:{number}:{code}", 0))
                self.errors[(code, *self.series[number])] = _Error(int(value), returned, int(at), sample)
        elif self._wanted.upstream is None:
            self.depth += int(value) if name == "q" else 0
        elif name.startswith("q:") and self._name_of(name[2:]) == self._wanted.upstream:
            self.depth += int(value)

    def _add(self, counts: str) -> None:
        for part in counts.split(","):
            name, _, count = part.partition(":")
            if name.startswith("h"):
                self.buckets[int(name[1:])] += int(count)
            else:
                self.counts[name] += int(count)

    def _is_wanted(self, number: str) -> bool:
        return number in self.series and self._wanted.matches(*self.series[number])


async def read_history(
    redis: Redis, now: float, wanted: Wanted, minutes: int, name_of: Callable[[str], str]
) -> HistoryRecord:
    """Return the last `minutes` minutes, the current one included. `now`: unix seconds by Redis's clock. `name_of`: the
    upstream of a resource of the queue. Raises StorageUnavailable."""
    last = int(now // 60)
    numbers = range(last - minutes + 1, last + 1)
    replies = await redis.pipeline([("HGETALL", keys.history(wanted.tenant, number)) for number in numbers])
    found: list[_Minute] = []
    for flat in replies:
        found.append(_Minute(flat, wanted, name_of))
        await asyncio.sleep(0)  # with many models, all of them together would delay the streams of a gateway
    lengths = [60.0] * (minutes - 1) + [max(1.0, round(now - last * 60, 3))]
    series = {each for one in found for each in one.series.values()}
    return HistoryRecord(
        data=[
            HistoryMinute(at=float(number * 60), seconds=length, **_figures([one], length, wanted))
            for number, length, one in zip(numbers, lengths, found, strict=True)
        ],
        total=HistoryTotals(**_figures(found, sum(lengths), wanted)),
        errors=_errors(found),
        models=sorted({model for model, _ in series if model}),
        upstreams=sorted({upstream for _, upstream in series if upstream}),
    )


def _figures(found: Sequence[_Minute], seconds: float, wanted: Wanted) -> dict[str, Any]:
    counts = sum((one.counts for one in found), Counter[str]())
    buckets = sum((one.buckets for one in found), Counter[int]())
    return {
        "created": counts["c"] if wanted.upstream is None else None,
        **{name: counts[short] for name, short in _COUNTS.items()},
        "tokens_per_second": round(counts["t"] / seconds, 2),
        "first_token": FirstTokens(
            sum(buckets.values()), _rounded(percentile(buckets, 0.5)), _rounded(percentile(buckets, 0.95))
        ),
        "queue_depth": max(one.depth for one in found) if wanted.knows_depth else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.3g}")


def _errors(found: Sequence[_Minute]) -> list[HistoryError]:
    errors: dict[tuple[str, str, str], _Error] = {}
    for one in found:
        for key, error in one.errors.items():
            errors[key] = errors.get(key, _Error()).with_more(error)
    ordered = sorted(errors.items(), key=lambda item: (-item[1].failed, -item[1].returned, item[0]))
    return [
        HistoryError(
            code=code,
            model=model or None,
            upstream=upstream or None,
            failed=one.failed,
            returned=one.returned,
            last_at=one.last_ms / 1000,
            sample=one.sample,
        )
        for (code, model, upstream), one in ordered[:MOST_ERRORS]
    ]

"""Adds up in memory what this process sees, and sends the sums to the queue's Redis every few seconds (`History`).

Nothing on the way of a request or a token waits for it. Figures that cannot be sent are dropped: they are for looking
back, not for accounting.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from broker.errors import StorageUnavailable
from broker.history.buckets import bucket_of
from broker.ids import ALL_TENANTS
from broker.redis.client import Argument, Call, Redis, RedisError, Script
from broker.redis.clock import RedisClock
from broker.store import keys

PERIOD, NORMAL_LEASE = 5.0, 15.0
"""Maximum seconds between two flushes, and so until a figure shows, with this lease."""
LIFETIME = 7200  # seconds; the longest time that is asked for
SERIES, ERRORS = 32, 64
"""Maximum number of series (a model at an upstream), and of their errors, of a tenant in one minute."""
PENDING_SERIES, PENDING_ENDINGS = 1000, 20_000
"""Maximum number of series that a process keeps between two flushes, and of generations that it looks up then."""
AT_ONCE = 200  # series in one call of the script, and generations in one pipeline
CLOSE_TIMEOUT = 0.5  # seconds
ADD, SAMPLE = Script("history", "add"), Script("history", "sample")
log = logging.getLogger("tokencast.history")


class Series(NamedTuple):
    """What figures are kept apart by; the upstream is "" before one has accepted the call. Without model and upstream:
    all further ones."""

    tenant: str
    model: str = ""
    upstream: str = ""


class _Errors:
    """Errors of one code: generations that failed, calls after which the generation went back to the queue, and the
    latest generation."""

    __slots__ = ("failed", "latest", "returned")

    def __init__(self) -> None:
        self.failed = self.returned = 0
        self.latest = ""


class Sums:
    """The figures of one process since its last flush."""

    def __init__(self) -> None:
        self.counts: defaultdict[Series, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.errors: defaultdict[Series, defaultdict[str, _Errors]] = defaultdict(lambda: defaultdict(_Errors))

    def add(self, series: Series, name: str, number: int = 1) -> None:
        if len(self.counts) >= PENDING_SERIES and series not in self.counts:
            series = Series(series.tenant)
        self.counts[series][name] += number

    def add_error(self, series: Series, code: str, gid: str, *, failed: int = 0, returned: int = 0) -> None:
        if len(self.errors) >= PENDING_SERIES and series not in self.errors:
            series = Series(series.tenant)
        errors = self.errors[series]
        error = errors[code if code in errors or len(errors) < ERRORS else "other"]
        error.failed += failed
        error.returned += returned
        error.latest = gid

    def calls(self) -> list[Call]:
        """Return the calls of add.lua: for each tenant, and for all together."""
        whole = Sums()
        for series, counts in self.counts.items():
            for name, number in counts.items():
                whole.add(series._replace(tenant=ALL_TENANTS), name, number)
        for series, errors in self.errors.items():
            for code, one in errors.items():
                everywhere = series._replace(tenant=ALL_TENANTS)
                whole.add_error(everywhere, code, one.latest, failed=one.failed, returned=one.returned)
        return [*self._calls(), *whole._calls()]

    def _calls(self) -> list[Call]:
        tenants: dict[str, list[Series]] = {}
        for series in dict.fromkeys((*self.counts, *self.errors)):
            tenants.setdefault(series.tenant, []).append(series)
        return [
            ((keys.history(tenant),), self._arguments(found[at : at + AT_ONCE]))
            for tenant, found in tenants.items()
            for at in range(0, len(found), AT_ONCE)
        ]

    def _arguments(self, found: Sequence[Series]) -> list[Argument]:
        arguments: list[Argument] = [LIFETIME, SERIES, ERRORS, len(found)]
        for series in found:
            counts: dict[str, int] = self.counts.get(series) or {}
            errors: dict[str, _Errors] = self.errors.get(series) or {}
            packed = ",".join(f"{name}:{number}" for name, number in counts.items())
            arguments += (series.model, series.upstream, packed, len(errors))
            for code, one in errors.items():
                arguments += (code, one.failed, one.returned, one.latest)
        return arguments


class Figures:
    """What a process has seen since it last took the sums."""

    def __init__(self) -> None:
        self._sums = Sums()
        self._endings: list[str] = []

    def created(self, tenant: str, model: str) -> None:
        self._sums.add(Series(tenant, model), "c")

    def started(self, series: Series) -> None:
        self._sums.add(series, "s")

    def first_token(self, series: Series, seconds: float) -> None:
        """Record the time from a generation's creation, or the time it is scheduled for, to its first token."""
        self._sums.add(series, f"h{bucket_of(seconds)}")

    def tokens(self, series: Series, number: int) -> None:
        if number > 0:
            self._sums.add(series, "t", number)

    def completed(self, series: Series) -> None:
        self._sums.add(series, "d")

    def failed(self, series: Series, code: str, gid: str) -> None:
        self._sums.add(series, "f")
        self._sums.add_error(series, code, gid, failed=1)

    def returned(self, series: Series, code: str, gid: str) -> None:
        """Record a call that failed before the first token, after which its generation went back to the queue."""
        self._sums.add_error(series, code, gid, returned=1)

    def cancelled(self, series: Series) -> None:
        self._sums.add(series, "x")

    def ended(self, gid: str) -> None:
        """Record a generation that a script ended without telling its model: the next flush looks it up."""
        if len(self._endings) < PENDING_ENDINGS:
            self._endings.append(gid)

    def take(self) -> tuple[Sums, list[str]]:
        """Return the sums, and the generations to look up; begin with new ones."""
        taken = self._sums, self._endings
        self._sums, self._endings = Sums(), []
        return taken


class History(Figures):
    """The figures of one process, and their way to Redis."""

    def __init__(self, queue: Redis, logs: Redis, *, lease: float = NORMAL_LEASE) -> None:
        """`lease`: that of generations, in seconds; with a shorter one than usual, flushes are more frequent too."""
        super().__init__()
        self._period = PERIOD * min(1.0, lease / NORMAL_LEASE)
        self.redis = queue
        self.clock = RedisClock(queue)
        self._logs = logs
        self.samples = False
        """Whether this process also measures how much waits."""
        self.collect: Callable[[], None] = lambda: None
        """Called before each flush: adds what is cheaper to count now than when it happens."""

    async def run(self) -> None:
        """Flush until cancelled; survives every error."""
        while True:
            await asyncio.sleep(self._period * random.uniform(0.8, 1))
            try:
                await self.flush()
            except Exception:
                log.exception("the history could not be written")

    async def close(self) -> None:
        """Flush for the last time, if Redis answers soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.flush()

    async def flush(self) -> None:
        """Send the figures. They are dropped if Redis is unavailable: it may have taken them."""
        self.collect()
        sums, endings = self.take()
        with suppress(StorageUnavailable, RedisError):
            await self._look_up(endings, sums)
        with suppress(StorageUnavailable, RedisError):
            if calls := sums.calls():
                await self.redis.run_each(ADD, calls)
            if self.samples:
                names = (keys.history(), keys.DEPTH, keys.LATER, keys.WAITING_COUNTS)
                await self.redis.run(SAMPLE, names, (LIFETIME, ALL_TENANTS))

    async def _look_up(self, gids: Sequence[str], sums: Sums) -> None:
        for at in range(0, len(gids), AT_ONCE):
            some = gids[at : at + AT_ONCE]
            replies = await self._logs.pipeline([("HMGET", keys.meta(gid), *_FIELDS) for gid in some])
            for gid, found in zip(some, replies, strict=True):
                tenant, model, upstream, status, error = ((one or b"").decode() for one in found)
                series = Series(tenant, model, upstream)
                if status == "failed":
                    sums.add(series, "f")
                    sums.add_error(series, _code_of(error), gid, failed=1)


_FIELDS = ("tn", "md", "up", "st", "er")


class _Error(msgspec.Struct):
    code: str | None = None


def _code_of(error: str) -> str:
    try:
        return msgspec.json.decode(error, type=_Error).code or "other"
    except msgspec.DecodeError:
        return "other"

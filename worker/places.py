"""The places of this worker's calls at their upstreams and within their tenants' limits (`broker/queue`).

A place is taken by the pull, before the claim. It lasts a lease, and is renewed until its call has ended.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker.errors import StorageUnavailable
from broker.queue import commands
from broker.queue.commands import NOT_TOLD, Done, Outcome, Place, ToldLimit, ToldLimits, UpstreamLimits
from broker.queue.quotas import TenantLimits
from broker.redis.client import Redis
from worker.upstream.rate_limits import RateLimit, RateLimits

FAILURES = 5
"""Generations whose calls failed in a row, after which this worker stops calling an upstream that works for others."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds
log = logging.getLogger("tokencast.worker")


@dataclass(slots=True)
class HeldPlace:
    """A place that this worker renews. `called_at`: monotonic time at which its call was sent. `resource`: "" between
    two calls of one generation, while it only has its place among those of its tenant."""

    gid: str
    tenant: str
    resource: str
    tokens: int
    called_at: float
    accepted: bool = False


@dataclass(slots=True)
class _Failures:
    """Calls of this worker that failed in a row at one upstream."""

    gids: set[str]
    pause: float = FIRST_PAUSE
    until: float = 0.0


class Places:
    """Renews the places of calls, and reports what became of them."""

    def __init__(self, redis: Redis, limits: TenantLimits, worker: str) -> None:
        """`worker`: id of this worker, which tells apart the failures that several workers see."""
        self._redis = redis
        self._limits = limits
        self._worker = worker
        self._held: dict[str, HeldPlace] = {}
        self._failures: dict[str, _Failures] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._renewals: set[asyncio.Future[None]] = set()  # renewals under way
        self.born = ""
        """Since when the queue's places can be trusted, as this worker has seen it (ms); "" before the first pull."""

    def add(self, gid: str, tenant: str, resource: str, tokens: int) -> None:
        """Begin to renew a place that was pulled."""
        self._held[gid] = HeldPlace(gid, tenant, resource, tokens, time.monotonic())

    def of(self, gid: str) -> HeldPlace | None:
        """Return the place of a generation."""
        return self._held.get(gid)

    def sent(self, gid: str) -> None:
        """Record that a call is sent now."""
        if place := self._held.get(gid):
            place.called_at = time.monotonic()

    def accept(self, gid: str, limits: RateLimits | None = None) -> None:
        """Record that the upstream accepted the call. `limits`: those that the response told."""
        place = self._held.get(gid)
        if place is not None:
            self._failures.pop(place.resource, None)
            if not place.accepted:
                place.accepted = True
                told = _told(limits)
                self._start(commands.begun(self._redis, gid, place.resource, reserved=place.tokens, told=told))

    def forget(self, gid: str) -> None:
        """Stop renewing a place that another worker may use."""
        self._held.pop(gid, None)

    def give_up(self, gid: str) -> None:
        """Free a place at an upstream, in the background, of a generation that another worker runs elsewhere."""
        if place := self._held.pop(gid, None):
            self._start(self._report(place, "", "none", None, None))

    def end_soon(self, gid: str, outcome: Outcome, used: int | None = None) -> None:
        """End a call in the background, so that an unreachable Redis does not occupy the slot."""
        self._start(self.end(gid, outcome, used=used))

    async def end(
        self,
        gid: str,
        outcome: Outcome,
        *,
        retry_after: float | None = None,
        used: int | None = None,
        limits: RateLimits | None = None,
    ) -> Done | None:
        """Free the place of a call. `retry_after`: seconds after which the upstream can be called again. `used`:
        tokens. `limits`: those that a refusal told. None if the queue's Redis cannot be reached: the place ends by
        itself."""
        place = self._held.pop(gid, None)
        return None if place is None else await self._report(place, place.tenant, outcome, retry_after, used, limits)

    async def refuse(self, gid: str, outcome: Outcome, retry_after: float | None, limits: RateLimits | None) -> None:
        """Report a refused call of a generation that looks for another upstream: it keeps its place among those of its
        tenant."""
        place = self._held.get(gid)
        if place is not None:
            refused = replace(place)
            place.resource, place.accepted = "", False  # from now on it is not renewed
            await self._report(refused, "", outcome, retry_after, None, limits)

    async def take(self, gid: str, upstreams: Sequence[UpstreamLimits]) -> tuple[str, float | None]:
        """Take a place for another call, at the first of `upstreams` that takes it. Return its name, "" if none does,
        and the seconds until that may change, if they are known. Raises StorageUnavailable."""
        place = self._held.get(gid)
        if place is None:
            return "", None
        usable = [one for one in upstreams if not self.is_paused(one.resource)]
        lease_ms = int(self._limits.lease * 1000)
        held, place.resource = place.resource, ""  # a renewal meanwhile would take the old place again
        try:
            await self._renewals_ended()
            taken = await commands.take(
                self._redis, gid, held, usable, lease_ms=lease_ms, born=self.born, tokens=place.tokens
            )
        finally:
            place.resource = held
        self.note_born(taken.born)
        if taken.resource:
            place.resource, place.accepted = taken.resource, False
        return taken.resource, None if taken.wait_ms is None else taken.wait_ms / 1000

    async def _renewals_ended(self) -> None:
        """Wait until the renewals under way are done: one that followed the end of a place would take it again."""
        if self._renewals:
            await asyncio.wait(self._renewals)

    async def _report(
        self,
        place: HeldPlace,
        tenant: str,
        outcome: Outcome,
        retry_after: float | None,
        used: int | None,
        limits: RateLimits | None = None,
    ) -> Done | None:
        """Free a place, and that of its tenant if one is given."""
        gid = place.gid
        await self._renewals_ended()
        try:
            done = await commands.done(
                self._redis,
                gid,
                tenant,
                place.resource,
                outcome,
                worker=self._worker,
                retry_ms=-1 if retry_after is None else int(retry_after * 1000),
                age_ms=int((time.monotonic() - place.called_at) * 1000),
                reserved=place.tokens,
                used=used,
                told=_told(limits),
            )
        except StorageUnavailable as error:
            log.warning("%s: place not freed, it will end by itself: %s", gid, error.code)
            return None
        if outcome == "fail":
            self._count_failure(place, circuit_open=done.circuit_open)
        return done

    def _count_failure(self, place: HeldPlace, *, circuit_open: bool) -> None:
        failures = self._failures.setdefault(place.resource, _Failures(set()))
        failures.gids.add(place.gid)
        if len(failures.gids) >= FAILURES and not circuit_open:
            failures.until = time.monotonic() + failures.pause
            log.warning(
                "upstream %s: every call of this worker fails; the next in %g s", place.resource, failures.pause
            )
            failures.pause = min(2 * failures.pause, LONGEST_PAUSE)

    def is_paused(self, resource: str) -> bool:
        """Return whether this worker does not call an upstream for the moment."""
        failures = self._failures.get(resource)
        return failures is not None and failures.until > time.monotonic()

    async def is_held(self, gid: str, resource: str) -> bool:
        """Return whether Redis has a place of a generation. Raises StorageUnavailable."""
        return await commands.has_place(self._redis, gid, resource)

    async def wait_ended(self) -> None:
        """Wait until the reports under way are done."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def run(self) -> None:
        """Renew the places until cancelled."""
        while True:
            await asyncio.sleep(self._limits.lease / 3)
            await self.hold()

    def note_born(self, born: int) -> None:
        """Record since when the places can be trusted; if that is new, put this worker's places back at once."""
        known, self.born = self.born, str(born)
        if known not in ("", self.born):
            log.warning("the queue has lost its places, or stood still; they are put back")
            self._start(self.hold())

    async def hold(self) -> None:
        """Renew the places now; before the first pull there are none."""
        if not self.born:
            return
        places = [
            Place(one.gid, one.resource, one.tenant if self._limits.is_counted(one.tenant) else "", one.accepted)
            for one in self._held.values()
        ]
        renewal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._renewals.add(renewal)
        try:
            self.note_born(
                await commands.hold(self._redis, places, lease_ms=int(self._limits.lease * 1000), born=self.born)
            )
        except StorageUnavailable:
            log.debug("places not renewed")
        finally:
            self._renewals.discard(renewal)
            renewal.set_result(None)

    def _start(self, call: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(_quietly(call))
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _told(limits: RateLimits | None) -> ToldLimits:
    return ToldLimits(*map(_told_limit, limits)) if limits else NOT_TOLD


def _told_limit(one: RateLimit) -> ToldLimit:
    return ToldLimit(one.limit or None, one.remaining, _ms(one.reset), _ms(one.window))


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds * 1000)


async def _quietly(call: Coroutine[Any, Any, object]) -> None:
    try:
        await call
    except StorageUnavailable as error:
        log.debug("the queue: %s", error.code)

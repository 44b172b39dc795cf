"""Why generations wait, and at which position: for those who ask, and for the readers of their streams.

The reason follows from the state of the upstreams of a lane, which is read at most once a second. Readers are told when
it changes, by a process that has readers of that generation: a generation that nobody follows costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from broker.errors import StorageUnavailable
from broker.events import WaitingReason
from broker.fanout.hub import Hub
from broker.generation import Generation
from broker.ids import Cursor, created_ms
from broker.queue.commands import Ticket
from broker.queue.tickets import Queue
from broker.queue.upstreams import UpstreamState, UpstreamStates
from broker.records import QueueState
from broker.store import commands
from broker.store.store import Store

PERIOD = 1.0  # seconds between two looks at the generations with readers
logger = logging.getLogger("tokencast.broker")


class Reason(NamedTuple):
    """Why a generation waits, and the next try (unix seconds) if it is known."""

    reason: WaitingReason
    retry_at: float | None


_PAUSED, _AT_LIMIT = Reason("paused", None), Reason("tenant_limit", None)


class Level(NamedTuple):
    """Generations of one priority that wait for the same upstreams, and why. Those of tenants that are paused or at
    their limit are a level of their own."""

    lane: str
    priority: int
    waiting: int
    reason: WaitingReason
    retry_at: float | None


class Waiting:
    """Explains waiting generations."""

    def __init__(self, store: Store, queue: Queue, hub: Hub) -> None:
        self.upstreams = UpstreamStates(queue.redis)
        self._store = store
        self._queue = queue
        self._hub = hub
        self._looks: dict[str, _Look] = {}  # generation with readers → the last look at it

    async def explain(self, generations: Sequence[Generation]) -> list[Generation]:
        """Return the generations, with reason and position of those that wait. If the queue's Redis cannot be reached,
        they stay as they are."""
        waiting = [one for one in generations if one.queue is not None]
        if not waiting:
            return list(generations)
        try:
            reasons = await self._reasons(waiting)
            positions = await self._queue.positions([_ticket(one) for one in waiting])
        except StorageUnavailable:
            return list(generations)
        states = {
            one.id: QueueState(
                position if reason.reason in ("queued", "upstream_limit") else None,
                *reason,
                one.queue.upstreams if one.queue else [],
            )
            for one, reason, position in zip(waiting, reasons, positions, strict=True)
        }
        return [replace(one, queue=states.get(one.id)) for one in generations]

    async def _reasons(self, generations: Sequence[Generation]) -> list[Reason]:
        now = await self._store.clock.now()
        paused = await self.upstreams.paused()
        lanes = {one.lane for one in generations}
        names = sorted({name for lane in lanes for name in lane.split(",") if name})
        states = await self.upstreams.read(names, now)
        full = await self._queue.full_levels(sorted({one.tenant for one in generations}))
        return [_reason(one, states, now, paused, full[one.tenant]) for one in generations]

    async def late_try(self, generation: Generation) -> float | None:
        """Return when the next call is possible (unix seconds), if a waiting generation cannot wait until then; None
        otherwise. Its readers are told why. Raises StorageUnavailable."""
        now = await self._store.clock.now()
        states = await self.upstreams.read([name for name in generation.lane.split(",") if name], now)
        if not _is_too_late(generation, _lane_reason(generation.lane, states, now)):
            return None  # nearly always, and without a round trip: the states are known
        [found] = await self._reasons([generation])
        if found.retry_at is None or not _is_too_late(generation, found):
            return None
        await self._tell(generation.id, found.reason, found.retry_at)
        return found.retry_at

    async def levels(self) -> tuple[list[Level], int]:
        """Return what waits in each lane and priority, of all tenants, and the number of scheduled ones."""
        paused = await self.upstreams.paused()
        tenants = sorted(name.removeprefix("t:") for name in paused if name.startswith("t:"))
        counts = await self._queue.levels(tenants)
        now = await self._store.clock.now()
        lanes = {lane for lane, _ in counts.eligible}
        states = await self.upstreams.read(sorted({name for lane in lanes for name in lane.split(",")}), now)
        found: dict[tuple[str, int, Reason], int] = {}

        def add(levels: Mapping[tuple[str, int], int], reason: Callable[[str], Reason]) -> None:
            for (lane, priority), waiting in levels.items():
                level = lane, priority, _PAUSED if "all" in paused else reason(lane)
                found[level] = found.get(level, 0) + waiting

        add(counts.eligible, lambda lane: _lane_reason(lane, states, now))
        add(counts.at_limit, lambda _: _AT_LIMIT)
        add(counts.paused, lambda _: _PAUSED)
        levels = [Level(lane, priority, waiting, *reason) for (lane, priority, reason), waiting in found.items()]
        return sorted(levels, key=lambda one: (one.lane, one.priority, one.reason)), counts.scheduled

    async def run(self) -> None:
        """Tell the readers of waiting generations when the reason changes, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self._note()
            except StorageUnavailable:
                logger.debug("reasons not noted")
            except Exception:
                logger.exception("noting reasons failed")

    async def _note(self) -> None:
        followed = [(feed, feed.waits) for feed in self._hub.waiting_feeds() if feed.waits is not None]
        looks: dict[str, _Look] = {}
        if followed:
            reasons = await self._reasons([generation for _, generation in followed])
            for (feed, _), (reason, retry_at) in zip(followed, reasons, strict=True):
                before = self._looks.get(feed.gid)
                lasts = before is not None and before.reason == reason
                told = before is not None and lasts and before.told and before.tail == feed.tail
                # Between a refusal and the next call it is free to run for a moment, which is not worth an event.
                if not told and (lasts or reason != "queued"):
                    await self._tell(feed.gid, reason, retry_at)
                    told = True
                looks[feed.gid] = _Look(reason, feed.tail, told)
        self._looks = looks

    async def _tell(self, gid: str, reason: WaitingReason, retry_at: float | None) -> None:
        data = msgspec.json.encode({"reason": reason, "retry_at": retry_at})
        at = None if retry_at is None else int(retry_at * 1000)
        await commands.note(self._store.redis, gid, reason, at, data)


class _Look(NamedTuple):
    """Why a followed generation waits, the newest event of its log then, and whether its readers know."""

    reason: WaitingReason
    tail: Cursor
    told: bool


def _ticket(generation: Generation) -> Ticket:
    order = created_ms(generation.id) if generation.run_at is None else int(generation.run_at * 1000)
    return Ticket(
        generation.id,
        generation.tenant,
        generation.ticket,
        generation.lane,
        generation.priority,
        generation.tokens,
        order,
    )


def _reason(
    generation: Generation,
    states: dict[str, UpstreamState],
    now: float,
    paused: frozenset[str],
    full: frozenset[str],
) -> Reason:
    if generation.run_at is not None and generation.run_at > now:
        return Reason("scheduled", generation.run_at)
    if paused & {"all", f"t:{generation.tenant}"}:
        return _PAUSED
    known = generation.queue
    if known is not None and known.reason == "upstream_down" and (known.retry_at or 0) > now:
        return Reason(known.reason, known.retry_at)
    if f"{generation.lane}:{generation.priority}" in full:
        return _AT_LIMIT
    return _lane_reason(generation.lane, states, now)


def _is_too_late(generation: Generation, found: Reason) -> bool:
    """Return whether no upstream takes a call before the end of the generation's waiting."""
    if generation.deadline is None or found.retry_at is None:
        return False
    return found.reason in ("upstream_busy", "upstream_down") and found.retry_at > generation.deadline


def _lane_reason(lane: str, states: dict[str, UpstreamState], now: float) -> Reason:
    found = [states[name].reason(now) for name in lane.split(",") if name in states]
    if not found or None in found:
        return Reason("queued", None)
    closed = [one for one in found if one is not None]
    reason = min(closed, key=lambda one: _ORDER.index(one[0]))[0]
    known = [retry_at for _, retry_at in closed if retry_at is not None]
    return Reason(reason, min(known, default=None) if reason in ("upstream_busy", "upstream_down") else None)


_ORDER = ("upstream_limit", "upstream_busy", "upstream_down", "paused")
"""Of several upstreams that take no call, the reason of the one that is likely to take the next. Its next try is the
earliest of all."""

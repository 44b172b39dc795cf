"""The queue: waiting tickets, and the places of calls at their upstreams. The policy is in the Lua scripts.

A ticket waits where it was put; a worker with a free slot pulls the ones that can run now, and only these become jobs
of arq, which only gets security fixes and was designed for short jobs. With `worker/consumer.py` this is the only code
that uses it. All of the queue can be lost: reapers rebuild it from the logs' Redis."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from broker.queue import commands
from broker.queue.commands import Ticket, UpstreamLimits
from broker.queue.quotas import Quotas, TenantLimits
from broker.redis.client import Argument, Redis
from broker.settings.settings import Settings
from broker.store import keys

JOB_NAME = "generate"
"""Name of the arq job, which pull.lua writes."""
NO_LIMITS = TenantLimits()


def upstream_limits(settings: Settings) -> list[UpstreamLimits]:
    """Return the usable upstreams of a worker, with their limits."""
    return [
        UpstreamLimits(one.name, one.max_concurrency or 0, one.rpm or 0, one.tpm or 0, one.adaptive, one.weight or 0)
        for one in settings.resources()
        if one.usable
    ]


def granted_name(gid: str, number: int) -> str:
    """Return the name of a granted ticket for arq; the scripts derive it."""
    return f"{gid}.r{number}"


def serialize(job: dict[str, Any]) -> bytes:
    """Encode a job as JSON: with arq's default, pickle, anyone who can write to Redis could run code here."""
    return msgspec.json.encode(job)


def deserialize(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data)


class WorkerPresence(NamedTuple):
    """A worker, according to its last heartbeat."""

    slots: int
    running: int


class WaitingLevels(NamedTuple):
    """Numbers of waiting tickets by level, (lane, priority). Each ticket is counted once."""

    eligible: Mapping[tuple[str, int], int]
    """Tickets that wait for their turn or for an upstream."""
    at_limit: Mapping[tuple[str, int], int]
    """Tickets of tenants that are at their limit."""
    paused: Mapping[tuple[str, int], int]
    """Tickets of paused tenants."""
    scheduled: int


class QueueDepth(NamedTuple):
    """Number of waiting generations, and the time (unix ms) since which the oldest of those whose turn is next waits;
    0 if none waits."""

    depth: int
    since_ms: int

    def longest_wait(self, now: float) -> float:
        """Return how long it has waited."""
        return max(0.0, now - self.since_ms / 1000) if self.since_ms else 0.0


class Queue:
    """The waiting generations."""

    def __init__(self, redis: Redis, limits: TenantLimits = NO_LIMITS) -> None:
        self.redis = redis
        self.quotas = Quotas(redis, limits)

    async def offer(self, ticket: Ticket) -> bool:
        """Add a ticket; return whether it is new. May be repeated."""
        return await commands.offer(self.redis, ticket, self._weight(ticket))

    async def offer_each(self, tickets: Sequence[Ticket]) -> list[Exception | None]:
        """Add tickets in one pipeline; return the error of each."""
        replies = await self.redis.run_each(commands.OFFER, self._offers(tickets))
        return [reply if isinstance(reply, Exception) else None for reply in replies]

    async def offer_many(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Add tickets in one round trip; return those that were missing."""
        replies = await self.redis.run_many(commands.OFFER, self._offers(tickets))
        return [ticket for ticket, added in zip(tickets, replies, strict=True) if added]

    def _offers(self, tickets: Sequence[Ticket]) -> list[tuple[tuple[()], list[Argument]]]:
        return [((), commands.offer_arguments(ticket, self._weight(ticket))) for ticket in tickets]

    def _weight(self, ticket: Ticket) -> float:
        return self.quotas.limits.of_tenant(ticket.tenant).weight

    async def withdraw(self, ticket: Ticket) -> None:
        """Remove a ticket. A worker that already has it finds the generation ended."""
        await commands.withdraw(self.redis, ticket)

    async def positions(self, tickets: Sequence[Ticket]) -> list[int | None]:
        """Return the positions in their lanes, from 1; None for one that does not wait there, or whose position cannot
        be told cheaply."""
        return await commands.positions(self.redis, tickets)

    async def full_levels(self, tenants: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return, for each tenant, the levels in which it waits because it is at its limit."""
        found = await self.redis.pipeline([("SMEMBERS", keys.full(tenant)) for tenant in tenants])
        return {
            tenant: frozenset(level.decode() for level in levels) for tenant, levels in zip(tenants, found, strict=True)
        }

    async def depth(self) -> int:
        return (await self.queue_depth()).depth

    async def levels(self, paused: Collection[str] = ()) -> WaitingLevels:
        """Return how many tickets wait in each level. `paused`: tenants whose tickets are counted separately, as those
        of the tenants at their limit are. Only these tenants cost a command for each level."""
        flat, later, found = await self.redis.pipeline(
            [("HGETALL", keys.DEPTH), ("ZCARD", keys.LATER), ("ZRANGE", keys.FULL, 0, -1)]
        )
        eligible = {level.decode(): int(count) for level, count in zip(flat[::2], flat[1::2], strict=True)}
        full = await self.full_levels([one.decode() for one in found if one.decode() not in paused])
        limited = [(level, tenant) for tenant, levels in full.items() for level in levels if level in eligible]
        return WaitingLevels(
            paused=_by_lane(await self._take(eligible, [(level, tenant) for tenant in paused for level in eligible])),
            at_limit=_by_lane(await self._take(eligible, limited)),
            eligible=_by_lane(eligible),
            scheduled=int(later),
        )

    async def _take(self, eligible: dict[str, int], wanted: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Move the tickets of (level, tenant) from `eligible` to the result."""
        counts = await self.redis.pipeline([("ZCARD", keys.waiting(level, tenant)) for level, tenant in wanted])
        taken: dict[str, int] = {}
        for (level, _), count in zip(wanted, counts, strict=True):
            moved = min(int(count), eligible[level])  # tickets may have been added since the levels were read
            eligible[level] -= moved
            taken[level] = taken.get(level, 0) + moved
        return taken

    async def queue_depth(self) -> QueueDepth:
        counts, since = await self.redis.pipeline([("HGETALL", keys.DEPTH), ("ZCARD", keys.LATER)])
        levels = {level.decode(): int(count) for level, count in zip(counts[::2], counts[1::2], strict=True)}
        return QueueDepth(sum(levels.values()) + int(since), await self._oldest(levels))

    async def _oldest(self, levels: dict[str, int]) -> int:
        """Return the time of the oldest generation among those whose tenants are next, in unix ms; 0 if none waits."""
        found = list(levels)
        tenants = await self.redis.pipeline([("ZRANGE", keys.turns(level), 0, 0) for level in found])
        names = [keys.waiting(level, one[0].decode()) for level, one in zip(found, tenants, strict=True) if one]
        heads = await self.redis.pipeline([("ZRANGE", name, 0, 0, "WITHSCORES") for name in names])
        return int(min((float(head[1]) for head in heads if head), default=0))

    async def workers(self) -> list[WorkerPresence]:
        """Return the running workers."""
        ids = await self.redis.execute("ZRANGE", keys.WORKERS, 0, -1)
        found = await self.redis.pipeline([("HMGET", keys.worker(one.decode()), "slots", "running") for one in ids])
        return [WorkerPresence(int(slots), int(running or 0)) for slots, running in found if slots is not None]

    async def models(self) -> dict[str, list[str]]:
        """Return upstream → the models that it announces, if a worker has asked it."""
        flat = await self.redis.execute("HGETALL", keys.MODELS)
        return {name.decode(): msgspec.json.decode(listed) for name, listed in zip(flat[::2], flat[1::2], strict=True)}


def _by_lane(counts: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the counts that are not 0, by (lane, priority)."""
    levels = ((*level.rpartition(":")[::2], count) for level, count in counts.items() if count)
    return {(lane, int(priority)): count for lane, priority, count in levels}

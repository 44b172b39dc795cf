"""The seam to arq: puts tickets into its queue, rings, takes them out again. With `worker/consumer.py` the only
place that knows arq, which is frozen (security fixes only) and was made for short jobs.

A ticket is `<generation>.<number>`; the job behind it says nothing but generation and tenant. Everything here can
be lost and is rebuilt from the logs' Redis by the reaper.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec
from arq.jobs import serialize_job

from broker.ids import created_ms
from broker.queue.quotas import Quotas, TenantLimits
from broker.redis.client import Redis, Script
from broker.store import keys

ENQUEUE = Script("queue", "enqueue")
JOB_NAME = "generate"
NO_LIMITS = TenantLimits()
SHORTEST = 7 * 86_400  # seconds for which a ticket lives at least: as long as a generation that nobody renews


def serialize(job: dict[str, Any]) -> bytes:
    """arq's own default is pickle: whoever can write to Redis could run code here."""
    return msgspec.json.encode(job)


def deserialize(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data)


FRONT = 200  # tickets that are looked at for who waits longest
TICKET = 38 + len(".1")  # characters of a generation's first one


class WorkerPresence(NamedTuple):
    """A worker, as it last said itself."""

    slots: int
    running: int


class QueueDepth(NamedTuple):
    """How many generations wait, and since when (unix ms) the longest of those that are next in turn; 0 where none
    does, or all have run before."""

    depth: int
    since_ms: int

    def seconds(self, now: float) -> float:
        """How long that one has waited."""
        return max(0.0, now - self.since_ms / 1000) if self.since_ms else 0.0


class Queue:
    """The tickets of generations that wait for a worker."""

    def __init__(self, redis: Redis, retention: float, limits: TenantLimits = NO_LIMITS) -> None:
        self.redis = redis
        self.places = Quotas(redis, limits)
        self._keep_ms = int(max(retention, SHORTEST) * 1000)

    async def enqueue(self, gid: str, tenant: str, number: int, *, park: bool = False) -> bool:
        """True if the ticket is new. May be repeated. `park`: its turn has come, and there was no place for it."""
        ticket = f"{gid}.{number}"
        job = serialize_job(JOB_NAME, (gid, tenant), {}, None, time.time_ns() // 1_000_000, serializer=serialize)
        added = await self.redis.run(
            ENQUEUE,
            [keys.arq_job(ticket), keys.QUEUE, keys.BELL, keys.FAIR, *self.places.names(tenant)],
            [ticket, job, self._keep_ms, tenant, *self.places.arguments(tenant, gid, park=park)],
        )
        return bool(added)

    async def stopped(self, gid: str, tenant: str) -> None:
        """It runs no longer: its place is the oldest parked one's."""
        for ticket in await self.places.stop(tenant, gid):
            other, _, number = ticket.rpartition(".")
            await self.enqueue(other, tenant, int(number))

    async def withdraw(self, gid: str, tenant: str, number: int) -> None:
        """Takes a ticket back. A worker that has it already finds the generation ended."""
        ticket = f"{gid}.{number}"
        await self.redis.pipeline(
            [
                ("ZREM", keys.QUEUE, ticket),
                ("DEL", keys.arq_job(ticket)),
                ("ZREM", keys.queued(tenant), gid),
                ("ZREM", keys.parked(tenant), ticket),
            ]
        )
        if self.places.limits.count(tenant):  # it may have been next, with a place
            await self.stopped(gid, tenant)

    async def depth(self) -> int:
        return int(await self.redis.execute("ZCARD", keys.QUEUE))

    async def waiting(self) -> QueueDepth:
        depth, tickets = await self.redis.pipeline([("ZCARD", keys.QUEUE), ("ZRANGE", keys.QUEUE, 0, FRONT - 1)])
        fresh = [ticket[:-2].decode() for ticket in tickets if ticket.endswith(b".1") and len(ticket) == TICKET]
        return QueueDepth(int(depth), min(map(created_ms, fresh), default=0))

    async def workers(self) -> list[WorkerPresence]:
        """Those that are there."""
        ids = await self.redis.execute("ZRANGE", keys.WORKERS, 0, -1)
        found = await self.redis.pipeline([("HMGET", keys.worker(one.decode()), "slots", "running") for one in ids])
        return [WorkerPresence(int(slots), int(running or 0)) for slots, running in found if slots is not None]

    async def models(self) -> dict[str, list[str]]:
        """Upstream → the models that it says it has, as far as a worker has asked it."""
        flat = await self.redis.execute("HGETALL", keys.MODELS)
        return {name.decode(): msgspec.json.decode(listed) for name, listed in zip(flat[::2], flat[1::2], strict=True)}

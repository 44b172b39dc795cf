"""The seam to arq: adds tickets to its queue, signals them, and removes them. With `worker/consumer.py` the only code
that uses arq, which only gets security fixes and was designed for short jobs.

A ticket is `<generation>.<number>`; its job contains only generation and tenant. All of it can be lost: the reaper
rebuilds it from the logs' Redis.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from arq.jobs import serialize_job

from broker.ids import created_ms
from broker.queue.quotas import Quotas, TenantLimits
from broker.redis.client import Call, Redis, Script
from broker.store import keys

ENQUEUE = Script("queue", "enqueue")
JOB_NAME = "generate"
NO_LIMITS = TenantLimits()
SHORTEST = 7 * 86_400  # seconds; minimum lifetime of a ticket: that of a generation that is not renewed


def serialize(job: dict[str, Any]) -> bytes:
    """Encode a job as JSON: with arq's default, pickle, anyone who can write to Redis could run code here."""
    return msgspec.json.encode(job)


def deserialize(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data)


FRONT = 200  # tickets at the head that are checked for the longest wait
TICKET = 38 + len(".1")  # length of a generation's first ticket


class WorkerPresence(NamedTuple):
    """A worker, according to its last heartbeat."""

    slots: int
    running: int


class QueueDepth(NamedTuple):
    """Number of waiting generations, and the time (unix ms) since which the longest of those at the head has waited; 0
    if none waits, or all of them ran before."""

    depth: int
    since_ms: int

    def longest_wait(self, now: float) -> float:
        """Return how long it has waited."""
        return max(0.0, now - self.since_ms / 1000) if self.since_ms else 0.0


class Queue:
    """The tickets of generations that wait for a worker."""

    def __init__(self, redis: Redis, retention: float, limits: TenantLimits = NO_LIMITS) -> None:
        self.redis = redis
        self.quotas = Quotas(redis, limits)
        self._keep_ms = int(max(retention, SHORTEST) * 1000)

    async def enqueue(self, gid: str, tenant: str, number: int, *, park: bool = False) -> bool:
        """Add a ticket; return whether it is new. May be repeated. `park`: its turn came, but no reservation was
        free."""
        return bool(await self.redis.run(ENQUEUE, *self._call(gid, tenant, number, park=park)))

    async def enqueue_each(self, gids: Sequence[str], tenant: str) -> list[Exception | None]:
        """Add the first ticket of each of these generations, in one pipeline; return the error of each."""
        replies = await self.redis.run_each(ENQUEUE, [self._call(gid, tenant, 1, park=False) for gid in gids])
        return [reply if isinstance(reply, Exception) else None for reply in replies]

    def _call(self, gid: str, tenant: str, number: int, *, park: bool) -> Call:
        ticket = f"{gid}.{number}"
        job = serialize_job(JOB_NAME, (gid, tenant), {}, None, time.time_ns() // 1_000_000, serializer=serialize)
        return (
            [keys.arq_job(ticket), keys.QUEUE, keys.BELL, keys.FAIR, *self.quotas.enqueue_keys(tenant)],
            [ticket, job, self._keep_ms, tenant, *self.quotas.enqueue_arguments(tenant, gid, park=park)],
        )

    async def release(self, gid: str, tenant: str) -> None:
        """Release a generation that no longer runs: its reservation goes to the oldest parked ticket."""
        for ticket in await self.quotas.release(tenant, gid):
            other, _, number = ticket.rpartition(".")
            await self.enqueue(other, tenant, int(number))

    async def withdraw(self, gid: str, tenant: str, number: int) -> None:
        """Remove a ticket. A worker that already has it finds the generation ended."""
        ticket = f"{gid}.{number}"
        await self.redis.pipeline(
            [
                ("ZREM", keys.QUEUE, ticket),
                ("DEL", keys.arq_job(ticket)),
                ("ZREM", keys.queued(tenant), gid),
                ("ZREM", keys.parked(tenant), ticket),
            ]
        )
        if self.quotas.limits.is_counted(tenant):  # it may have been next, with a reservation
            await self.release(gid, tenant)

    async def depth(self) -> int:
        return int(await self.redis.execute("ZCARD", keys.QUEUE))

    async def queue_depth(self) -> QueueDepth:
        depth, tickets = await self.redis.pipeline([("ZCARD", keys.QUEUE), ("ZRANGE", keys.QUEUE, 0, FRONT - 1)])
        fresh = [ticket[:-2].decode() for ticket in tickets if ticket.endswith(b".1") and len(ticket) == TICKET]
        return QueueDepth(int(depth), min(map(created_ms, fresh), default=0))

    async def workers(self) -> list[WorkerPresence]:
        """Return the running workers."""
        ids = await self.redis.execute("ZRANGE", keys.WORKERS, 0, -1)
        found = await self.redis.pipeline([("HMGET", keys.worker(one.decode()), "slots", "running") for one in ids])
        return [WorkerPresence(int(slots), int(running or 0)) for slots, running in found if slots is not None]

    async def models(self) -> dict[str, list[str]]:
        """Return upstream → the models that it announces, if a worker has asked it."""
        flat = await self.redis.execute("HGETALL", keys.MODELS)
        return {name.decode(): msgspec.json.decode(listed) for name, listed in zip(flat[::2], flat[1::2], strict=True)}

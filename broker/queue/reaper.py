"""Finds generations whose worker or ticket is lost, and requeues or ends them.

Every worker and gateway runs a reaper, so that no single process is required. The scripts find expired leases by
Redis's clock; this process's observations of Redis meanwhile (`redis/continuity.py`) decide whether an expired lease
proves anything. Concurrent reapers are harmless.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

from broker.errors import StorageUnavailable
from broker.history.recorder import History
from broker.ids import SHARDS
from broker.queue.commands import Ticket
from broker.queue.refill import Refill, ticket_from_fields
from broker.queue.tickets import Queue
from broker.redis.client import Redis, RedisError
from broker.redis.continuity import SLOW, Continuity
from broker.runtime.logging import details
from broker.settings.settings import Settings
from broker.store import commands
from broker.store.data_loss import DataLossDetector, ServerIdentity, server_identity

AT_ONCE = 300  # generations per shard and sweep
log = logging.getLogger("tokencast.reaper")


class Reaper:
    """`run` sweeps every two seconds. A worker's death therefore costs a lease and one sweep; if Redis's clock goes
    back just before, one sweep more, which is still below "a worker's death costs at most 20 s"."""

    def __init__(
        self,
        redis: Redis,
        queue: Queue,
        settings: Settings,
        data_loss: DataLossDetector | None = None,
        history: History | None = None,
    ) -> None:
        """`data_loss`: is notified of every observation of a server. `history`: of each generation that is ended."""
        self._redis = redis
        self._queue = queue
        self._data_loss = data_loss
        self._history = history
        self._refill = Refill(redis, queue, settings)
        self._settings = settings
        self._lease_ms = int(settings.lease * 1000)
        self._max_attempts = settings.max_attempts
        self._period = 2.0 * min(1.0, settings.lease / 15)
        self._warned: set[str] = set()
        longest_gap = self._period + max(settings.lease / 2, SLOW)
        self.continuity = {group: Continuity(longest_gap) for group in redis.topology.groups}
        """Observations of the server of each group of shards."""
        self.failed = 0
        """Number of generations ended as `attempts_exhausted`."""
        self.expired = 0
        """Number of generations whose waiting lasted too long."""

    async def run(self) -> None:
        """Sweep until cancelled; survives every error."""
        while True:
            await asyncio.gather(self._try_refill(), *map(self._try_sweep, self.continuity))
            await asyncio.sleep(self._period * random.uniform(0.8, 1))

    async def _try_refill(self) -> None:
        try:
            await self._refill.check()
        except StorageUnavailable:
            log.debug("the queue cannot be checked")
        except Exception:
            log.exception("refilling the queue failed")

    async def _try_sweep(self, group: str) -> None:
        """Sweep one group; each server of a cluster separately, so that an unavailable one does not delay the
        others."""
        try:
            await self.sweep(group)
            self._warned.discard(group)
        except StorageUnavailable as error:
            if not self._warned:
                log.warning("sweep skipped: %s", error)
            self._warned.add(group)
            self._mark_interrupted(group)
        except Exception:
            log.exception("sweep failed")
            self._mark_interrupted(group)

    def _mark_interrupted(self, group: str) -> None:
        self.continuity[group].reset()
        if self._data_loss is not None:
            self._data_loss.mark_unreachable(group)

    async def sweep(self, group: str) -> None:
        """Check the due generations of a group of shards."""
        continuity = self.continuity[group]
        sent = time.monotonic()
        server = await server_identity(self._redis, group)
        clock, due = await self._due(group)
        if continuity.observe(server.name, clock, sent, time.monotonic()):
            _, due = await self._due(group, self._lease_ms)
        self._report_server(group, server)
        if due and continuity.duration() >= self._settings.lease:
            waiting = await self._look(due)
            due = [gid for gid in due if gid not in waiting]
        for gid in due:
            if not await self._reap(gid, continuity):
                log.info("sweep aborted: Redis hung, or its clock was set")
                self._mark_interrupted(group)
                return

    def _report_server(self, group: str, server: ServerIdentity) -> None:
        if self._data_loss is not None:
            self._data_loss.observe_server(group, server)

    async def _due(self, group: str, ahead_ms: int | None = None) -> tuple[float, Sequence[str]]:
        """Return the server's time (Unix seconds) and the generations to check. `ahead_ms`: include generations that
        are due only later than this, which means that the clock went back."""
        shards = [shard for shard in SHARDS if self._redis.topology.group(shard) == group]
        now_ms, gids = await commands.due(self._redis, shards, AT_ONCE, ahead_ms)
        return now_ms / 1000, gids

    async def _look(self, due: Sequence[str]) -> set[str]:
        """Look at the due generations that wait, all at once, and offer their tickets. Return their ids."""
        waiting = await commands.look(self._redis, due)
        tickets = [ticket_from_fields(self._settings, one.gid, one.tenant, one.ticket, one.fields) for one in waiting]
        try:
            for ticket in await self._queue.offer_many(tickets) if tickets else ():
                log.info("%s: queued again", ticket.gid)
        except StorageUnavailable as error:  # of the queue's Redis, whose loss is noticed when it is back
            log.warning("%d tickets not written yet: %s", len(tickets), error.code)
        return {one.gid for one in waiting}

    async def _reap(self, gid: str, continuity: Continuity) -> bool:
        """Reap one generation and queue its ticket. Not pipelined, because one error would lose all replies of a
        pipeline, and the tickets with them. Return False if the command was executed too late."""
        try:
            reply = await commands.reap(
                self._redis,
                gid,
                max_attempts=self._max_attempts,
                lease_ms=self._lease_ms,
                observed_ms=int(continuity.duration() * 1000),
                latest_ms=int(continuity.deadline() * 1000),
            )
        except RedisError as error:
            log.error("%s: reaping failed: %s", gid, type(error).__name__)
            return True
        if reply.outcome == b"LATE":
            return False
        continuity.record_reply()
        if reply.outcome == b"FAILED":
            self.note_exhausted(gid)
        elif reply.outcome == b"EXPIRED":
            self.note_expired(gid)
        elif reply.outcome == b"REQUEUE":
            ticket = ticket_from_fields(self._settings, gid, reply.tenant, reply.ticket, reply.waiting)
            await self._offer(ticket)
        return True

    def note_exhausted(self, gid: str) -> None:
        """Count and log a generation that a script ended because it had been started too often."""
        self.failed += 1
        self._note_ended(gid)
        log.warning("%s: failed (attempts_exhausted)", gid, extra=details(code="attempts_exhausted"))

    def note_expired(self, gid: str) -> None:
        """Count and log a generation that a script ended because its waiting lasted too long."""
        self.expired += 1
        self._note_ended(gid)
        log.warning("%s: waited too long", gid, extra=details(code="queue_timeout"))

    def _note_ended(self, gid: str) -> None:
        if self._history is not None:
            self._history.ended(gid)

    async def _offer(self, ticket: Ticket) -> None:
        try:
            if await self._queue.offer(ticket):
                log.info("%s: queued again", ticket.gid)
        except StorageUnavailable as error:  # of the queue's Redis, whose loss is noticed when it is back
            log.warning("%s: ticket not written yet: %s", ticket.gid, error.code)

"""Places of this worker's running generations within their tenants' limits (`broker/queue/quotas.py`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from broker.errors import StorageUnavailable
from broker.queue.tickets import Queue
from worker.claims import Claim

log = logging.getLogger("tokencast.worker")


class Reservations:
    """The places of this worker's generations. One that it does not give back ends a lease later by itself."""

    def __init__(self, queue: Queue, claims: Mapping[str, Claim]) -> None:
        """`claims`: what runs now, by generation."""
        self._queue = queue
        self._quotas = queue.quotas
        self._claims = claims
        self._leaving: set[asyncio.Task[None]] = set()

    async def take(self, gid: str, tenant: str) -> bool:
        """Whether the tenant may have it run. StorageUnavailable."""
        return await self._quotas.acquire(tenant, gid)

    async def park(self, gid: str, tenant: str, ticket: str) -> None:
        """Until a place is free. Only once arq has forgotten the ticket: else it would take the next one of the same
        name with it."""
        try:
            await self._queue.enqueue(gid, tenant, int(ticket.rpartition(".")[2]), park=True)
        except StorageUnavailable as error:  # the reaper finds it
            log.warning("%s: not parked: %s", gid, error.code)

    def leave(self, gid: str, tenant: str) -> None:
        """At once for who calls; its slot is not held up by a Redis that is away."""
        if self._quotas.limits.is_counted(tenant):
            task = asyncio.create_task(self._leave(gid, tenant))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _leave(self, gid: str, tenant: str) -> None:
        try:
            await self._queue.release(gid, tenant)
        except StorageUnavailable as error:
            log.warning("%s: its place ends later: %s", gid, error.code)

    async def left(self) -> None:
        """All that are being given back are."""
        await asyncio.gather(*self._leaving)

    async def run(self) -> None:
        """Renews them, for ever."""
        while True:
            await asyncio.sleep(self._quotas.limits.lease / 3)
            try:
                await self._renew()
            except StorageUnavailable:
                log.debug("places not renewed")

    async def _renew(self) -> None:
        running: dict[str, list[str]] = {}
        for gid, claim in self._claims.items():
            if self._quotas.limits.is_counted(claim.tenant):
                running.setdefault(claim.tenant, []).append(gid)
        await self._quotas.renew(running)
        for tenant, gids in running.items():
            for gid in gids:
                if gid not in self._claims:  # it ended meanwhile, and this may have come after that
                    self.leave(gid, tenant)

"""Reservations of this worker's generations within their tenants' limits (`broker/queue/quotas.py`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from broker.errors import StorageUnavailable
from broker.queue.tickets import Queue
from worker.claims import Claim

log = logging.getLogger("tokencast.worker")


class Reservations:
    """Acquires, renews and releases reservations. One that is not released expires a lease later."""

    def __init__(self, queue: Queue, claims: Mapping[str, Claim]) -> None:
        """`claims`: running generations, by id."""
        self._queue = queue
        self._quotas = queue.quotas
        self._claims = claims
        self._releasing: set[asyncio.Task[None]] = set()

    async def acquire(self, gid: str, tenant: str) -> bool:
        """Return whether the tenant's limit admits the generation. Raises StorageUnavailable."""
        return await self._quotas.acquire(tenant, gid)

    async def park(self, gid: str, tenant: str, ticket: str) -> None:
        """Park a generation until its tenant has a free place. Call it only after arq removed the ticket: otherwise arq
        would remove the next ticket of the same name."""
        try:
            await self._queue.enqueue(gid, tenant, int(ticket.rpartition(".")[2]), park=True)
        except StorageUnavailable as error:  # the reaper recovers it
            log.warning("%s: not parked: %s", gid, error.code)

    def release(self, gid: str, tenant: str) -> None:
        """Release a reservation in the background, so that an unreachable Redis does not occupy the slot."""
        if self._quotas.limits.is_counted(tenant):
            task = asyncio.create_task(self._release(gid, tenant))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def _release(self, gid: str, tenant: str) -> None:
        try:
            await self._queue.release(gid, tenant)
        except StorageUnavailable as error:
            log.warning("%s: reservation not released, it will expire: %s", gid, error.code)

    async def wait_released(self) -> None:
        """Wait until the releases under way are done."""
        await asyncio.gather(*self._releasing)

    async def run(self) -> None:
        """Renew the reservations until cancelled."""
        while True:
            await asyncio.sleep(self._quotas.limits.lease / 3)
            try:
                await self._renew()
            except StorageUnavailable:
                log.debug("reservations not renewed")

    async def _renew(self) -> None:
        running: dict[str, list[str]] = {}
        for gid, claim in self._claims.items():
            if self._quotas.limits.is_counted(claim.tenant):
                running.setdefault(claim.tenant, []).append(gid)
        await self._quotas.renew(running)
        for tenant, gids in running.items():
            for gid in gids:
                if gid not in self._claims:  # it ended meanwhile, and the renewal may have followed the release
                    self.release(gid, tenant)

"""The generations that run in this process, and how they are handed over when it stops."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import StorageUnavailable
from broker.queue.tickets import Queue
from broker.redis.client import Redis
from worker.claims import Claim, release
from worker.generate import GenerationRunner
from worker.reservations import Reservations

HAND_OVER = 5.0  # seconds; the reaper finds what could not be handed over
log = logging.getLogger("tokencast.worker")


class Slots:
    """One slot each."""

    def __init__(self, generator: GenerationRunner, store: Redis, queue: Queue, slots: int) -> None:
        self._generator = generator
        self._store = store
        self._queue = queue
        # To each its ticket. Two may have the same: Redis went back to before the claim of one that still runs here.
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._changed = asyncio.Event()
        self.slots = slots
        self.places = Reservations(queue, generator.claims)

    def __len__(self) -> int:
        return len(self._tasks)

    def free(self, starting: set[str]) -> int:
        """Slots that neither a generation has nor one of the tickets that are just being started."""
        return self.slots - len(self._tasks) - len(starting.difference(self._tasks.values()))

    def start(self, ticket: str, claim: Claim) -> None:
        task = asyncio.create_task(self._generator.run(claim), name=claim.gid)
        self._tasks[task] = ticket
        task.add_done_callback(lambda task: self._stopped(claim, task))

    def _stopped(self, claim: Claim, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._changed.set()
        if task.cancelled():  # it is handed over, and keeps its place
            return
        if claim.gid not in self._generator.claims:  # else the place is the newer attempt's
            self.places.leave(claim.gid, claim.tenant)
        if (error := task.exception()) is not None:
            log.error("%s: %s", task.get_name(), type(error).__name__)

    async def changed(self, within: float | None = None) -> None:
        """Until a generation has ended, or for so many seconds."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._changed.wait()

    async def drained(self) -> None:
        """Until none runs."""
        while self._tasks:
            await self.changed()

    async def hand_over(self) -> None:
        """Stops them all and puts them back into the queue."""
        claims, tasks = list(self._generator.claims.values()), list(self._tasks)
        await cancel_and_wait(tasks)
        try:
            async with asyncio.timeout(HAND_OVER):
                await asyncio.gather(self.places.left(), *map(self._hand_over, claims))
        except TimeoutError:
            log.warning("some generations could not be handed over in time")

    async def _hand_over(self, claim: Claim) -> None:
        try:
            number = await release(self._store, claim)
            if number is not None:
                await self._queue.enqueue(claim.gid, claim.tenant, number)
                log.info("%s: handed over", claim.gid)
        except StorageUnavailable as error:
            log.warning("%s: not handed over: %s", claim.gid, error)

"""`Slots`: the running generations of this process, and their hand-over when it stops."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import StorageUnavailable
from broker.runtime.logging import details
from worker.claims import Claim
from worker.generate import GenerationRunner
from worker.hand_back import HandBack
from worker.places import HeldPlace, Places

HAND_OVER_TIMEOUT = 5.0  # seconds; the reaper recovers generations that could not be handed over
log = logging.getLogger("tokencast.worker")


class Slots:
    """Runs each generation in a task of its own, one per slot."""

    def __init__(self, runner: GenerationRunner, places: Places, hand_back: HandBack, capacity: int) -> None:
        self._runner = runner
        self._hand_back = hand_back
        # Ticket of each task. Two tasks have the same one if Redis lost the claim of a generation that still runs here.
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._changed = asyncio.Event()
        self.capacity = capacity
        self.places = places

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def claims(self) -> list[Claim]:
        """The claims of the running generations."""
        return list(self._runner.claims.values())

    def free(self, starting: set[str]) -> int:
        """Return the number of slots that no generation and none of the `starting` tickets occupies."""
        return self.capacity - len(self._tasks) - len(starting.difference(self._tasks.values()))

    def start(self, ticket: str, claim: Claim) -> None:
        task = asyncio.create_task(self._runner.run(claim), name=claim.gid)
        self._tasks[task] = ticket
        place = self.places.of(claim.gid)
        task.add_done_callback(lambda task: self._on_done(claim, place, task))

    def _on_done(self, claim: Claim, place: HeldPlace | None, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._changed.set()
        if task.cancelled():  # it is handed over
            return
        if place is not None and self.places.of(claim.gid) is place:  # otherwise a newer call has one of its own
            self.places.end_soon(claim.gid, "none")
        if (error := task.exception()) is not None:
            log.error("%s: %s", task.get_name(), type(error).__name__)

    async def wait_changed(self, timeout: float | None = None) -> None:
        """Wait until a generation has ended, at most `timeout` seconds."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    async def wait_empty(self) -> None:
        """Wait until no generation is running."""
        while self._tasks:
            await self.wait_changed()

    async def hand_over(self) -> None:
        """Stop all generations and put them back into the queue."""
        claims, tasks = list(self._runner.claims.values()), list(self._tasks)
        await cancel_and_wait(tasks)
        try:
            async with asyncio.timeout(HAND_OVER_TIMEOUT):
                await asyncio.gather(*map(self._hand_over, claims))
                await self.places.wait_ended()
        except TimeoutError:
            log.warning("some generations could not be handed over in time")

    async def _hand_over(self, claim: Claim) -> None:
        try:
            if await self._hand_back.stop(claim):
                facts = details(model=claim.model, upstream=claim.upstream, attempt=claim.ordinal)
                log.info("%s: handed over", claim.gid, extra=facts)
        except StorageUnavailable as error:
            log.warning("%s: not handed over: %s", claim.gid, error)

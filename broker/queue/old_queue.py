"""Moves tickets out of the queue of 0.1.0, for deploys in which old gateways or reapers still run. Delete this module
and the two keys that it names in 0.4.0: nobody upgrades from 0.1.0 to that version.

Without it, such a generation would wait until a reaper of this version looks at it before an old one does. A ticket may
be in both queues, and its generation at workers of both versions: the claim decides, as for any second ticket.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from broker.concurrency.backoff import LogThrottle
from broker.errors import GenerationNotFound, StorageUnavailable
from broker.ids import check_id
from broker.queue.refill import waiting_tickets
from broker.queue.tickets import Queue
from broker.redis.client import Redis, RedisError
from broker.settings.settings import Settings
from broker.store import keys

AT_ONCE = 200  # tickets of one pipeline
MOST = 1000  # tickets of one look, so that several workers share a long queue
PERIOD = 1.0  # seconds
log = logging.getLogger("tokencast.queue")


class OldQueue:
    """`run` looks once a second. Only workers do it: without a worker of this version nothing would run the tickets in
    their new place."""

    def __init__(self, logs: Redis, queue: Queue, settings: Settings, is_stopping: Callable[[], bool]) -> None:
        """`is_stopping`: whether this worker takes no more tickets. In a rollback those of 0.1.0 must find them."""
        self._logs = logs
        self._queue = queue
        self._settings = settings
        self._is_stopping = is_stopping
        self._throttle = LogThrottle()
        # Of tenants whose keys this worker does not know, a reaper finds the parked generations within half a minute.
        self._names = [keys.OLD_QUEUE, *map(keys.old_parked, sorted(set(settings.tenants.values())))]

    async def run(self) -> None:
        """Move tickets until cancelled; survives every error."""
        while True:
            try:
                await self.move()
            except StorageUnavailable:
                log.debug("the queue of 0.1.0 cannot be read")
            except RedisError as error:
                self._throttle.tell(log, f"tickets of 0.1.0 not moved: {type(error).__name__}")
            except Exception:
                log.exception("moving tickets of 0.1.0 failed")
            await asyncio.sleep(PERIOD * random.uniform(0.8, 1))

    async def move(self) -> None:
        """Move up to MOST tickets. Raises StorageUnavailable."""
        sizes = await self._queue.redis.pipeline([("ZCARD", name) for name in self._names])
        for name, size in zip(self._names, sizes, strict=True):
            for _ in range(0, min(size, MOST), AT_ONCE):
                if not self._is_stopping():
                    await self._move_some(name)

    async def _move_some(self, name: str) -> None:
        """Offer before removing: a ticket in both queues is harmless, one in neither waits for a reaper."""
        members = await self._queue.redis.execute("ZRANGE", name, 0, AT_ONCE - 1)
        if not members:
            return
        tickets = await waiting_tickets(self._logs, self._settings, list(_generations(members)))
        await self._queue.offer_many(tickets)
        await self._queue.redis.pipeline(
            [("ZREM", name, *members), ("DEL", *(keys.arq_job(one.decode(errors="replace")) for one in members))]
        )
        log.info("%d tickets of 0.1.0 taken, %d wait", len(members), len(tickets))


def _generations(members: Iterable[bytes]) -> Iterator[str]:
    for member in members:
        with suppress(GenerationNotFound):
            yield check_id(member.decode(errors="replace").partition(".")[0])

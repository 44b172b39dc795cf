"""Puts the waiting generations back into a queue that has lost its data.

The loss is noticed by `born`, which pull.lua and hold.lua write: a process that finds another one than before, or a
young one at its start, offers every generation that waits, shard by shard. Of several processes one takes a shard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from broker.errors import StorageUnavailable
from broker.ids import SHARDS, created_ms
from broker.queue.commands import Ticket
from broker.queue.tickets import Queue
from broker.redis.client import Redis
from broker.request.options import DEFAULT_PRIORITY
from broker.settings.settings import Settings
from broker.store import keys

AT_ONCE = 200  # tickets of one pipeline
CLAIM_MS = 60_000  # time for which a process has a shard
YOUNG = 60.0  # seconds; a queue of this age may be the successor of one with data
TICKET_FIELDS = ("md", "ln", "pr", "es", "ca", "ra", "nt")
"""Fields of a generation's meta hash that its ticket needs; look.lua and reap.lua return them in this order."""
log = logging.getLogger("tokencast.queue")


class Refill:
    """Watches the queue's Redis; `check` is called every few seconds."""

    def __init__(self, logs: Redis, queue: Queue, settings: Settings) -> None:
        self._logs = logs
        self._queue = queue
        self._settings = settings
        self._born: bytes | None = None

    async def check(self) -> None:
        """Refill the queue if it has lost its data since the last call. Raises StorageUnavailable."""
        born, now = await self._queue.redis.pipeline([("GET", keys.BORN), ("TIME",)])
        known, self._born = self._born, born or self._born
        if born is None or born == known:
            return
        if known is None and int(now[0]) - int(born) / 1000 > YOUNG:
            return
        try:
            await self._refill(logging.INFO if known is None else logging.WARNING)
        except StorageUnavailable:
            self._born = known
            raise

    async def _refill(self, level: int) -> None:
        """`level`: of the log line. At the start of this process, the generations may be just being enqueued."""
        began, offered = time.monotonic(), 0
        claims = [("SET", keys.refill(shard), "1", "NX", "PX", CLAIM_MS) for shard in SHARDS]
        taken = await self._queue.redis.pipeline(claims)
        for shard, reply in zip(SHARDS, taken, strict=True):
            if reply is not None:
                offered += await self._refill_shard(shard)
        if offered:
            log.log(level, "queue refilled: %d generations in %.1f s", offered, time.monotonic() - began)

    async def _refill_shard(self, shard: str) -> int:
        gids = [gid.decode() for gid in await self._logs.execute("ZRANGE", keys.live(shard), 0, -1)]
        offered = 0
        for first in range(0, len(gids), AT_ONCE):
            tickets = await waiting_tickets(self._logs, self._settings, gids[first : first + AT_ONCE])
            offered += len(await self._queue.offer_many(tickets))
        return offered


def ticket_from_fields(
    settings: Settings, gid: str, tenant: str, number: int, fields: Sequence[bytes | None]
) -> Ticket:
    """Return the ticket of a generation that waits. `fields`: values of TICKET_FIELDS; 0.1.0 wrote neither a lane nor
    options. A lane whose upstreams are unknown here is replaced."""
    model, lane, priority, tokens, created, run_at, not_before = fields
    return Ticket(
        gid,
        tenant,
        number,
        settings.current_lane((lane or b"").decode(), (model or b"").decode()),
        int(priority or DEFAULT_PRIORITY),
        int(tokens or 0),
        int(run_at or created or created_ms(gid)),
        max(int(run_at or 0), int(not_before or 0)),
    )


async def waiting_tickets(logs: Redis, settings: Settings, gids: Sequence[str]) -> list[Ticket]:
    """Return the tickets of those of these generations that wait."""
    metas = await logs.pipeline([("HMGET", keys.meta(gid), "st", "own", "tn", "tk", *TICKET_FIELDS) for gid in gids])
    return [
        ticket_from_fields(settings, gid, tenant.decode(), int(number or 1), fields)
        for gid, (status, own, tenant, number, *fields) in zip(gids, metas, strict=True)
        if status == b"queued" and not own and tenant is not None and fields[0] is not None
    ]

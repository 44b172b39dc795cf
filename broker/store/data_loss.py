"""Detects that Redis has lost data lately: a generation, or the record of an idempotency key, that is missing then may
only be missing for the moment, until a worker has put it back."""

from __future__ import annotations

import asyncio
import math
import time
from typing import NamedTuple

from broker.errors import StorageUnavailable
from broker.ids import created_ms, shard_of
from broker.redis.client import Redis, RedisError
from broker.redis.clock import RedisClock
from broker.store.preflight import forbidden

OLDEST = 8 * 86_400.0  # seconds; the age of a generation that has not ended is below
NAMED_BEFORE = 20.0  # seconds from the making of an id to the creation of its generation, at most
NO_EPOCH = b"?"  # no data set has this name


class ServerIdentity(NamedTuple):
    """One start of a Redis server."""

    name: bytes
    """Its `run_id`; empty if INFO is not allowed."""
    uptime: float
    """Seconds; infinite if unknown."""


async def server_identity(redis: Redis, group: str) -> ServerIdentity:
    """The server that has this group of shards. StorageUnavailable."""
    try:
        info = await redis.info("server", group)
    except RedisError:
        info = b""
    except StorageUnavailable as error:
        if not forbidden(error):
            raise
        info = b""
    about = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    return ServerIdentity(about.get(b"run_id", b""), float(about.get(b"uptime_in_seconds", "inf")))


class DataLossDetector:
    """Knows the data sets of the shards by their names ("epochs"), and the servers that have them."""

    def __init__(self, redis: Redis, clock: RedisClock, grace: float) -> None:
        """`grace`: seconds that a worker may take to put a generation back."""
        self._redis = redis
        self._clock = clock
        self._grace = grace
        self._epochs: dict[str, bytes | None] = {}
        self._observed_at: dict[str, float] = {}  # shard → when its epoch was seen last
        self._servers: dict[str, bytes] = {}
        self._lost_at: dict[str, float] = {}  # shard → when another data set was noticed, or its server
        self._missed_at: dict[str, float] = {}  # shard without a data set → when a generation was missed there
        self._replaced_at: dict[str, float] = {}  # group → when another server was noticed
        self._interrupted: dict[str, float] = {}  # group → when its server answered again, or infinite
        self._asking: dict[str, asyncio.Task[ServerIdentity]] = {}

    def observe(self, shard: str, epoch: bytes | None, sent: float = math.inf) -> None:
        """`sent`: when it was asked for, by `time.monotonic`. An answer that another one may have overtaken, on another
        connection, tells nothing: the shard's first creation is no loss for those that were asked before it."""
        known, now = self._epochs.get(shard), time.monotonic()
        if known != epoch and sent < self._observed_at.get(shard, -math.inf):
            return
        if known is not None and known != epoch:
            replaced = self._replaced_at.get(self._redis.servers.group(shard), -math.inf)
            self._lost_at[shard] = replaced if replaced > self._observed_at[shard] else now
        self._epochs[shard] = epoch
        self._observed_at[shard] = now

    def seen(self, group: str, server: ServerIdentity) -> None:
        """It answers."""
        known = self._servers.get(group)
        if known is not None and known != server.name:
            self._replaced_at[group] = time.monotonic()
        self._servers[group] = server.name
        if self._interrupted.get(group) == math.inf:
            self._interrupted[group] = time.monotonic()

    def interrupt(self, group: str) -> None:
        """It does not answer."""
        self._interrupted[group] = math.inf

    def trusted(self, shard: str) -> bytes:
        """The epoch in which a record that Redis does not have was not lost lately. NO_EPOCH where this process knows
        of none, and `suspects` has to be asked."""
        epoch = self._epochs.get(shard)
        if epoch is None or self._within(self._lost_at.get(shard)) or self._is_young(epoch, self._clock.last()):
            return NO_EPOCH
        return epoch

    async def suspects(self, shard: str, epoch: bytes | None, sent: float) -> bool:
        """Whether a record that this shard does not have may have been lost lately. `epoch`: the shard's, now. A new
        data set alone is no sign of it: the first one is new, too. StorageUnavailable."""
        self.observe(shard, epoch, sent)
        if self._within(self._lost_at.get(shard)):
            return True
        if epoch is not None and not self._is_young(epoch, await self._clock.now()):
            return False
        group = self._redis.servers.group(shard)
        self.seen(group, await self._server(group))
        return self._within(self._replaced_at.get(group))

    async def recent(self, gid: str, epoch: bytes | None) -> bool:
        """Whether this generation, which Redis does not know, may have been lost so lately that its worker has not put
        it back yet. `epoch`: the shard's, now. StorageUnavailable."""
        shard, created, now = shard_of(gid), created_ms(gid) / 1000, await self._clock.now()
        if not now - OLDEST < created < now + NAMED_BEFORE:
            return False  # it never was
        group = self._redis.servers.group(shard)
        server = await self._server(group)
        self.seen(group, server)
        return (
            self._within(self._lost_at.get(shard))
            or self._within(self._replaced_at.get(group))
            or self._of_another_data_set(shard, created, epoch, now)
            or self._before_restart(group, server, created, now)
        )

    def _of_another_data_set(self, shard: str, created: float, epoch: bytes | None, now: float) -> bool:
        """Whether the shard's data set is younger than the generation. That it has none is noticed only when somebody
        asks."""
        if epoch is None:
            since = self._lost_at.get(shard) or self._missed_at.setdefault(shard, time.monotonic())
            return self._within(since)
        return created < _born(epoch) - NAMED_BEFORE and self._is_young(epoch, now)

    def _is_young(self, epoch: bytes, now: float) -> bool:
        return now - _born(epoch) < self._grace

    def _before_restart(self, group: str, server: ServerIdentity, created: float, now: float) -> bool:
        """Whether the server was started lately, and after the generation's creation: then it may have come back in a
        state from before that."""
        lately = server.uptime < self._grace or self._within(self._interrupted.get(group))
        # In whole seconds. What was created in that second counts as later: who saw the old server knows by its name.
        return lately and (math.isinf(server.uptime) or created < now - server.uptime - 1)

    async def _server(self, group: str) -> ServerIdentity:
        """Concurrent questions share an answer: unknown ids may come in a flood."""
        asking = self._asking.get(group)
        if asking is None or asking.done():
            asking = self._asking[group] = asyncio.create_task(server_identity(self._redis, group))
            asking.add_done_callback(_retrieved)
        return await asyncio.shield(asking)

    def _within(self, moment: float | None) -> bool:
        return moment is not None and time.monotonic() - moment < self._grace


def _born(epoch: bytes) -> float:
    """Unix seconds, by Redis's clock."""
    return int(epoch.partition(b".")[0]) / 1000


def _retrieved(task: asyncio.Task[ServerIdentity]) -> None:
    """Retrieve the exception: all callers may have been cancelled."""
    if not task.cancelled():
        task.exception()

"""Detects that Redis recently lost data: a generation, or an idempotency record, that is missing then may be missing
only until a worker has restored it."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from broker.concurrency.shared_call import SharedCall
from broker.errors import StorageUnavailable
from broker.ids import created_ms, shard_of
from broker.redis.client import Redis, RedisError
from broker.redis.clock import RedisClock
from broker.redis.errors import is_forbidden

RESTORING = "Redis has just come back without its data; running generations are being restored."
RECORD_MAY_BE_LOST = (
    "Redis has just come back without its data. This Idempotency-Key may belong to a generation that is being "
    "restored; retry in a few seconds."
)
OLDEST = 8 * 86_400.0  # seconds; every generation that has not ended is younger
NAMED_BEFORE = 20.0  # seconds; maximum time between making an id and creating its generation
NO_EPOCH = b"?"  # a name that no data set has


class ServerIdentity(NamedTuple):
    """One start of a Redis server."""

    name: bytes
    """Its `run_id`; empty if INFO is not allowed."""
    uptime: float
    """Seconds; infinite if unknown."""


async def server_identity(redis: Redis, group: str) -> ServerIdentity:
    """Identify the server that has this group of shards. StorageUnavailable."""
    try:
        info = await redis.info("server", group)
    except RedisError:
        info = b""
    except StorageUnavailable as error:
        if not is_forbidden(error):
            raise
        info = b""
    about = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    return ServerIdentity(about.get(b"run_id", b""), float(about.get(b"uptime_in_seconds", "inf")))


class DataLossDetector:
    """Tracks the data set of each shard by its name (its "epoch"), and the server of each group of shards."""

    def __init__(self, redis: Redis, clock: RedisClock, grace: float) -> None:
        """`grace`: maximum seconds until a worker has restored a generation."""
        self._redis = redis
        self._clock = clock
        self._grace = grace
        self._epochs: dict[str, bytes | None] = {}
        self._observed_at: dict[str, float] = {}  # shard → when its epoch was last read
        self._servers: dict[str, bytes] = {}
        self._lost_at: dict[str, float] = {}  # shard → when a new data set, or a new server, was detected
        self._missed_at: dict[str, float] = {}  # shard without a data set → when a generation was first found missing
        self._replaced_at: dict[str, float] = {}  # group → when a new server was detected
        self._reachable_since: dict[str, float] = {}  # group → when its server answered again, or inf
        self._queries: dict[str, SharedCall[ServerIdentity]] = {}

    def observe_epoch(self, shard: str, epoch: bytes | None, sent: float = math.inf) -> None:
        """Record the epoch of a shard. `sent`: when it was requested, by `time.monotonic`. A reply that a later one on
        another connection may have overtaken is ignored: the first creation in a shard is not a loss for callers that
        read before it."""
        known, now = self._epochs.get(shard), time.monotonic()
        if known != epoch and sent < self._observed_at.get(shard, -math.inf):
            return
        if known is not None and known != epoch:
            replaced = self._replaced_at.get(self._redis.topology.group(shard), -math.inf)
            self._lost_at[shard] = replaced if replaced > self._observed_at[shard] else now
        self._epochs[shard] = epoch
        self._observed_at[shard] = now

    def observe_server(self, group: str, server: ServerIdentity) -> None:
        """Record that the server of a group answers."""
        known = self._servers.get(group)
        if known is not None and known != server.name:
            self._replaced_at[group] = time.monotonic()
        self._servers[group] = server.name
        if self._reachable_since.get(group) == math.inf:
            self._reachable_since[group] = time.monotonic()

    def mark_unreachable(self, group: str) -> None:
        """Record that the server of a group does not answer."""
        self._reachable_since[group] = math.inf

    def trusted_epoch(self, shard: str) -> bytes:
        """Return the epoch in which a missing record was not lost recently. NO_EPOCH if this process knows none; then
        call `record_may_be_lost`."""
        epoch = self._epochs.get(shard)
        if epoch is None or self._within(self._lost_at.get(shard)) or self._is_young(epoch, self._clock.estimate()):
            return NO_EPOCH
        return epoch

    async def record_may_be_lost(self, shard: str, epoch: bytes | None, sent: float) -> bool:
        """Return whether a record that is missing in this shard may have been lost recently. `epoch`: the shard's
        current epoch. A new data set alone does not indicate a loss, since the first one is new, too.
        StorageUnavailable."""
        self.observe_epoch(shard, epoch, sent)
        if self._within(self._lost_at.get(shard)):
            return True
        if epoch is not None and not self._is_young(epoch, await self._clock.now()):
            return False
        group = self._redis.topology.group(shard)
        self.observe_server(group, await self._server(group))
        return self._within(self._replaced_at.get(group))

    async def generation_may_be_lost(self, gid: str, epoch: bytes | None) -> bool:
        """Return whether this generation, which Redis does not have, may have been lost so recently that its worker has
        not restored it yet. `epoch`: the shard's current epoch. StorageUnavailable."""
        shard, created, now = shard_of(gid), created_ms(gid) / 1000, await self._clock.now()
        if not now - OLDEST < created < now + NAMED_BEFORE:
            return False  # it never existed
        group = self._redis.topology.group(shard)
        server = await self._server(group)
        self.observe_server(group, server)
        return (
            self._within(self._lost_at.get(shard))
            or self._within(self._replaced_at.get(group))
            or self._in_new_data_set(shard, created, epoch, now)
            or self._restarted_since(group, server, created, now)
        )

    async def recently_lost(self) -> bool:
        """Return whether this process knows of a loss so recent that workers may not have restored everything yet.
        StorageUnavailable."""
        for group in self._redis.topology.groups:
            self.observe_server(group, await self._server(group))
        return any(map(self._within, (*self._lost_at.values(), *self._replaced_at.values())))

    def _in_new_data_set(self, shard: str, created: float, epoch: bytes | None, now: float) -> bool:
        """Return whether the shard's data set is younger than the generation. A shard without a data set is detected
        only when it is read."""
        if epoch is None:
            since = self._lost_at.get(shard) or self._missed_at.setdefault(shard, time.monotonic())
            return self._within(since)
        return created < _created_at(epoch) - NAMED_BEFORE and self._is_young(epoch, now)

    def _is_young(self, epoch: bytes, now: float) -> bool:
        return now - _created_at(epoch) < self._grace

    def _restarted_since(self, group: str, server: ServerIdentity, created: float, now: float) -> bool:
        """Return whether the server was started recently, and after the generation's creation: then it may have loaded
        a state from before the creation."""
        recent = server.uptime < self._grace or self._within(self._reachable_since.get(group))
        # Uptime is in whole seconds, so a generation of the same second counts as later. A process that observed the
        # old server has detected the change by its name.
        return recent and (math.isinf(server.uptime) or created < now - server.uptime - 1)

    async def _server(self, group: str) -> ServerIdentity:
        """Identify the server; concurrent calls share one query, since requests for unknown ids may come in bursts."""
        query = self._queries.get(group)
        if query is None:
            query = self._queries[group] = SharedCall(lambda: server_identity(self._redis, group))
        return await query()

    def _within(self, moment: float | None) -> bool:
        return moment is not None and time.monotonic() - moment < self._grace


def _created_at(epoch: bytes) -> float:
    """Return the time at which a data set was created (Unix seconds, by Redis's clock)."""
    return int(epoch.partition(b".")[0]) / 1000

"""Topology of one URL: the server it names, the master that the sentinels name, or the masters of a cluster
(broker/redis/cluster.py). It is resolved at every connect; no object in this module keeps a connection."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from broker.concurrency.backoff import LogThrottle
from broker.concurrency.shared_call import SharedCall
from broker.ids import SHARDS
from broker.redis.connection import RespConnection
from broker.redis.errors import ConnectionRefused, NotMaster, RespError
from broker.redis.handshake import Reply
from broker.redis.url import Node, RedisUrl

WATCH = 5.0  # seconds between two queries to the sentinels
DEMOTED = "another server is the master now"
SENTINEL_TIMEOUT = 1.0  # seconds; after that the next sentinel is queried


class Topology(ABC):
    """`groups`: the sets of shards that one connection reaches, each named by one of its shards."""

    def __init__(self, address: RedisUrl) -> None:
        self.address = address
        self.suspect_since = 0.0
        self.log_throttle = LogThrottle()

    groups: tuple[str, ...] = SHARDS[:1]
    longest_block_ms = 60_000
    """Maximum time that a blocking read waits in the server."""

    def group(self, shard: str) -> str:
        """Return the group that contains a shard."""
        return SHARDS[0]

    @abstractmethod
    async def master(self) -> Node:
        """Return the address to connect to now. OSError if no server knows it."""

    async def server_groups(self) -> Sequence[str]:
        """Return one group of each server that has any. OSError."""
        return self.groups[:1]

    def is_demoted(self, node: Node) -> bool:
        """Return whether another node is known to be the master."""
        return False

    def check(self, node: Node) -> None:
        """Raise NotMaster if another node is known to be the master."""
        if self.is_demoted(node):
            raise NotMaster(DEMOTED)

    async def check_answer(self, connection: RespConnection, reply: Reply) -> None:
        """Run `check` after a blocking read. An empty reply may come from a demoted server that still answers, with old
        data, so then the server is asked for its role."""
        self.check(connection.node)
        if reply is None and not await connection.is_master():
            raise NotMaster(DEMOTED)

    def mark_suspect(self) -> None:
        """Record that a connection timed out, as happens if a network path or a machine is gone: other connections to
        the same server are then probably broken too."""
        self.suspect_since = time.monotonic()

    async def open(self, group: str = SHARDS[0]) -> RespConnection:
        """Open a raw connection to the master. OSError."""
        return await RespConnection.open(self.address, await self.master())

    @abstractmethod
    async def watch(self) -> None:
        """Keep `is_demoted` up to date until cancelled; run it while connections are open that may stay with an old
        master."""


class SingleServer(Topology):
    """The server that the URL names. A managed service may route the next connection to another server."""

    async def master(self) -> Node:
        return self.address.nodes[0] if self.address.nodes else ("", 0)

    async def watch(self) -> None:
        """Nothing to query."""


class SentinelTopology(Topology):
    """The master of a service, according to its sentinels. Connections to sentinels use the same options as those to
    servers, including TLS, but a login of their own."""

    def __init__(self, address: RedisUrl) -> None:
        super().__init__(address)
        self._as_sentinel = replace(
            address,
            kind="server",
            db=0,
            username=address.sentinel_username,
            password=address.sentinel_password,
            client_name=None,
            connect_timeout=min(SENTINEL_TIMEOUT, address.connect_timeout),
        )
        self._sentinels = list(address.nodes)
        self._query = SharedCall(self._query_all)
        self._master: Node | None = None

    async def master(self) -> Node:
        """Concurrent calls share one query: after a failover every connection asks."""
        return await self._query()

    async def _query_all(self) -> Node:
        """Query the sentinels one after another, starting with the one that answered last."""
        failure: OSError = ConnectionError(f"no sentinel knows a master of {self.address.service}")
        for sentinel in tuple(self._sentinels):
            try:
                master = await self._query_one(sentinel)
            except OSError as error:
                failure = error if isinstance(error, ConnectionRefused) else failure
                continue
            if master is not None:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                self._master = master
                return master
        raise failure

    async def _query_one(self, sentinel: Node) -> Node | None:
        """Return the master that one sentinel names, or None if the sentinel considers it down. No connection is kept,
        since masters rarely change. OSError."""
        connection = await RespConnection.open(self._as_sentinel, sentinel, any_role=True)
        try:
            reply = await connection.call("SENTINEL", "MASTER", self.address.service, timeout=SENTINEL_TIMEOUT)
        except RespError as error:
            if error.kind in ("NOAUTH", "NOPERM"):
                raise ConnectionRefused(f"a sentinel answers: {error}") from error
            return None  # this sentinel does not know the service
        finally:
            connection.close()
        master = dict(zip(reply[::2], reply[1::2], strict=True))
        flags = set(master[b"flags"].split(b","))
        if b"master" not in flags or flags & {b"s_down", b"o_down"}:
            return None
        return master[b"ip"].decode(), int(master[b"port"])

    def is_demoted(self, node: Node) -> bool:
        return self._master not in (None, node)

    async def watch(self) -> None:
        """Query the sentinels periodically: a master that lost contact with them, or that is about to be demoted, still
        accepts writes that will be lost, and does not report it."""
        while True:
            await asyncio.sleep(WATCH * random.uniform(0.8, 1))
            with suppress(OSError):  # without sentinels, the last known master stays in use
                await self.master()

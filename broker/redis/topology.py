"""Where the data of one URL is now: on the server it names, on the master that the sentinels name, or spread over
the masters of a cluster (broker/redis/cluster.py). Asked at every connect; nothing here holds a connection."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from broker.concurrency.backoff import LogThrottle
from broker.ids import SHARDS
from broker.redis.connection import ConnectionRefused, NotMaster, Reply, RespConnection, RespError
from broker.redis.url import Node, RedisUrl

WATCH = 5.0  # seconds between two questions to the sentinels
SUPERSEDED = "another server is the master now"
SENTINEL_TIMEOUT = 1.0  # seconds; then the next one is asked


class Topology(ABC):
    """`groups` are the sets of shards that one connection reaches, each named by a shard of it."""

    def __init__(self, address: RedisUrl) -> None:
        self.address = address
        self.suspect_since = 0.0
        self.troubles = LogThrottle()

    groups: tuple[str, ...] = SHARDS[:1]
    longest_block_ms = 60_000
    """For how long a read may at most wait in the server for something new."""

    def group(self, shard: str) -> str:
        """The group that a shard is in."""
        return SHARDS[0]

    @abstractmethod
    async def master(self) -> Node:
        """Where to connect to now. OSError where nobody knows."""

    async def each_server(self) -> Sequence[str]:
        """One group of each server that has some. OSError."""
        return self.groups[:1]

    def is_demoted(self, node: Node) -> bool:
        """Whether another one is known to be the master."""
        return False

    def check(self, node: Node) -> None:
        """NotMaster where another one is known to be the master."""
        if self.is_demoted(node):
            raise NotMaster(SUPERSEDED)

    async def check_answer(self, connection: RespConnection, reply: Reply) -> None:
        """`check`, behind a read that blocked. One that brought nothing may come from a server that was demoted and
        goes on answering, from behind: it is asked."""
        self.check(connection.node)
        if reply is None and not await connection.still_master():
            raise NotMaster(SUPERSEDED)

    def mark_suspect(self) -> None:
        """A connection died without a word, as when a path or a machine is gone: so have, probably, the others."""
        self.suspect_since = time.monotonic()

    async def open(self, group: str = SHARDS[0]) -> RespConnection:
        """A raw connection to the master. OSError."""
        return await RespConnection.open(self.address, await self.master())

    @abstractmethod
    async def watch(self) -> None:
        """Beside connections that may stay with an old master: keeps `superseded` up to date, for ever."""


class SingleServer(Topology):
    """What the URL says. Behind a name of a managed server another one may stand at the next connect."""

    async def master(self) -> Node:
        return self.address.nodes[0] if self.address.nodes else ("", 0)

    async def watch(self) -> None:
        """Nobody to ask."""


class SentinelTopology(Topology):
    """The master of a service, as its sentinels see it. They are connected to as the servers are, TLS included, under
    a login of their own."""

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
        self._asking: asyncio.Task[Node] | None = None
        self._master: Node | None = None

    async def master(self) -> Node:
        """All who ask at the same moment share one answer: after a failover everybody asks."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_retrieved)
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Node:
        """One sentinel after the other, the one that knew it last first."""
        trouble: OSError = ConnectionError(f"no sentinel knows a master of {self.address.service}")
        for sentinel in tuple(self._sentinels):
            try:
                master = await self._asked(sentinel)
            except OSError as error:
                trouble = error if isinstance(error, ConnectionRefused) else trouble
                continue
            if master is not None:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                self._master = master
                return master
        raise trouble

    async def _asked(self, sentinel: Node) -> Node | None:
        """The master that one sentinel names, unless it takes it for dead. Masters change once in months: no connection
        is kept for that. OSError."""
        connection = await RespConnection.open(self._as_sentinel, sentinel, any_role=True)
        try:
            reply = await connection.call("SENTINEL", "MASTER", self.address.service, timeout=SENTINEL_TIMEOUT)
        except RespError as error:
            if error.kind in ("NOAUTH", "NOPERM"):
                raise ConnectionRefused(f"a sentinel says: {error}") from error
            return None  # the service is not known to it
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
        """A master that was cut off from the sentinels, or is only about to be demoted, goes on taking what will be
        lost, and does not say so."""
        while True:
            await asyncio.sleep(WATCH * random.uniform(0.8, 1))
            with suppress(OSError):  # without sentinels, what was known is the best there is
                await self.master()


def _retrieved(task: asyncio.Task[Node]) -> None:
    """Whoever asked may be gone when the answer comes: an exception is then nobody's."""
    if not task.cancelled():
        task.exception()

"""Where the data of one URL is now: on the server it names, on the master that the sentinels name, or spread over
the masters of a cluster (broker/cluster.py). Asked at every connect; nothing here holds a connection."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from broker.address import Address, Node
from broker.ids import SHARDS
from broker.resp import NotMaster, Reply, RespConnection

WATCH = 5.0  # seconds between two questions to the sentinels
SUPERSEDED = "another server is the master now"
SENTINEL_TIMEOUT = 1.0  # seconds; then the next one is asked


class Servers(ABC):
    """`groups` are the sets of shards that one connection reaches, each named by a shard of it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.doubted_at = 0.0

    groups: tuple[str, ...] = SHARDS[:1]

    def group(self, shard: str) -> str:
        """The group that a shard is in."""
        return SHARDS[0]

    @abstractmethod
    async def master(self) -> Node:
        """Where to connect to now. OSError or RedisError where nobody knows."""

    def superseded(self, node: Node) -> bool:
        """Whether another one is known to be the master."""
        return False

    def check(self, node: Node) -> None:
        """NotMaster where another one is known to be the master."""
        if self.superseded(node):
            raise NotMaster(SUPERSEDED)

    async def check_answer(self, connection: RespConnection, reply: Reply) -> None:
        """`check`, behind a read that blocked. One that brought nothing may come from a server that was demoted and
        goes on answering, from behind: it is asked."""
        self.check(connection.node)
        if reply is None and not await connection.still_master():
            raise NotMaster(SUPERSEDED)

    def doubt(self) -> None:
        """A connection died without a word, as when a path or a machine is gone: so have, probably, the others."""
        self.doubted_at = time.monotonic()

    async def open(self, group: str = SHARDS[0]) -> RespConnection:
        """A raw connection to the master. OSError."""
        try:
            node = await self.master()
        except RedisError as error:
            raise ConnectionError(str(error)) from error
        return await RespConnection.open(self.address, node)

    @abstractmethod
    async def watch(self) -> None:
        """Beside connections that may stay with an old master: keeps `superseded` up to date, for ever."""


class OneServer(Servers):
    """What the URL says. Behind a name of a managed server another one may stand at the next connect."""

    async def master(self) -> Node:
        return self.address.nodes[0] if self.address.nodes else ("", 0)

    async def watch(self) -> None:
        """Nobody to ask."""


class Sentinels(Servers):
    """The master of a service, as its sentinels see it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        user, password = address.sentinel_login
        options: dict[str, Any] = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
        self._sentinel: Any = Sentinel(  # the library's asyncio half is only partly typed
            address.nodes,
            sentinel_kwargs={
                **options,
                "ssl": address.secure,
                "username": user,
                "password": password,
                "socket_timeout": SENTINEL_TIMEOUT,
                "socket_connect_timeout": SENTINEL_TIMEOUT,
            },
        )
        self._asking: asyncio.Task[Node] | None = None
        self._master: Node | None = None

    async def master(self) -> Node:
        """All who ask at the same moment share one answer: after a failover everybody asks."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_retrieved)
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Node:
        try:
            host, port = await self._sentinel.discover_master(self.address.service)
        finally:
            # Masters change once in months: no connection is kept for that.
            await asyncio.gather(*(each.connection_pool.disconnect() for each in self._sentinel.sentinels))
        self._master = (host, port)
        return self._master

    def superseded(self, node: Node) -> bool:
        return self._master not in (None, node)

    async def watch(self) -> None:
        """A master that was cut off from the sentinels, or is only about to be demoted, goes on taking what will be
        lost, and does not say so."""
        while True:
            await asyncio.sleep(WATCH * random.uniform(0.8, 1))
            with suppress(RedisError, OSError):  # without sentinels, what was known is the best there is
                await self.master()


def _retrieved(task: asyncio.Task[Node]) -> None:
    """Whoever asked may be gone when the answer comes: an exception is then nobody's."""
    if not task.cancelled():
        task.exception()

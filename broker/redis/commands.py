"""Short commands: a pool of the library's connections to one server at a time.

Replies are returned as Redis sends them, bytes in lists: the library's own conversions cost more than the commands and
lose the order of a stream entry's fields, which the hot paths rely on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.concurrency.backoff import Backoff
from broker.errors import Misconfigured, StorageUnavailable
from broker.redis import tls
from broker.redis.connection import raise_for_error
from broker.redis.errors import (
    MANY_CLIENTS,
    ClosedAtOnce,
    ConnectionRefused,
    LoginRefused,
    RespError,
    TlsFailed,
    configuration_error,
    in_place,
    is_demoted,
    storage_errors,
)
from broker.redis.handshake import (
    KEEPALIVE,
    Argument,
    Reply,
    check_greeting,
    greeting,
    tls_arguments,
    tls_failures,
)
from broker.redis.topology import Topology
from broker.redis.url import Node, RedisUrl, without_password
from broker.runtime.counters import ROUND_TRIPS, Buckets

IDLE = 15.0  # seconds

Command = Sequence[Argument]
Call = tuple[Sequence[str], Sequence[Argument]]
"""A script's keys and arguments."""


class Script:
    """A Lua script, `broker/<room>/lua/<name>.lua`, with its `--#include` lines resolved. Loaded on demand."""

    def __init__(self, room: str, name: str) -> None:
        self.name = name
        self.source = _source(room, name)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def _source(room: str, name: str) -> str:
    text = files("broker").joinpath(room, "lua", f"{name}.lua").read_text("utf-8")
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("--#include "):
            lines.append(_source(room, line.removeprefix("--#include ").strip()))
        else:
            lines.append(line)
    return "\n".join(lines)


class Redis(ABC):
    """Client for non-blocking commands. Methods raise StorageUnavailable if Redis is unavailable, loading, read-only or
    full. They never repeat a command that may have been executed: only the caller knows whether that is safe."""

    def __init__(self, url: str, topology: Topology) -> None:
        self.url = url
        self.topology = topology
        self.latency = Buckets(ROUND_TRIPS)
        """Latency of commands and pipelines, including the wait for a connection."""

    @abstractmethod
    async def execute(self, *command: Argument) -> Reply: ...

    @abstractmethod
    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """Run all commands in one round trip, not atomically. An error reply is raised."""

    @abstractmethod
    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        """Run a script by EVALSHA; load it first if Redis lost it in a restart or a failover."""

    @abstractmethod
    async def run_many(self, script: Script, calls: Sequence[Call]) -> list[Reply]:
        """Run a script with several sets of keys and arguments in one round trip."""

    @abstractmethod
    async def run_each(self, script: Script, calls: Sequence[Call]) -> list[Reply | Exception]:
        """As `run_many`, but with each error in its call's place. StorageUnavailable only if all calls failed together:
        each of them may have been executed then."""

    @abstractmethod
    async def info(self, section: str, group: str) -> bytes:
        """Return a section of INFO from the server that has this group of shards."""

    @abstractmethod
    async def close(self) -> None: ...

    async def unavailable_reason(self) -> str | None:
        """Return why Redis cannot be used now; None if it can."""
        failure = await self._ping_error()
        return None if failure is None else failure.message

    async def _ping_error(self) -> StorageUnavailable | None:
        try:
            await self.execute("PING")
        except StorageUnavailable as error:
            return error
        return None

    async def wait_until_available(self, log: logging.Logger) -> None:
        """Wait until Redis can be used. Log the reason once a minute, and the recovery. Misconfigured if the URL is the
        reason."""
        shown_url, backoff = without_password(self.url), Backoff(0.1, longest=5.0)
        while failure := await self._ping_error():
            if (why := configuration_error(failure)) is not None:
                raise Misconfigured(f"Redis at {shown_url}: {why}")
            self.topology.log_throttle.tell(log, f"{failure.message} Trying {shown_url} again.")
            await backoff.wait()
        if backoff.failing:
            self.topology.log_throttle.over()
            log.info("Redis answers at %s", shown_url)


class Pool(Redis):
    """Connections to one server, or to the server that is the master when each connection is opened."""

    def __init__(self, url: str, topology: Topology, *, socket_timeout: float = 5.0, max_connections: int = 64) -> None:
        super().__init__(url, topology)
        options: dict[str, Any] = {
            "socket_timeout": socket_timeout,
            "socket_connect_timeout": topology.address.connect_timeout,
            "health_check_interval": 15,
            "topology": topology,
        }
        pool = _ShrinkingPool(
            max_connections=max_connections,
            timeout=socket_timeout,  # pyright: ignore[reportArgumentType]
            connection_class=_UnixConnection if topology.address.path else _TcpConnection,
            **options,
        )
        # The library's asyncio half is only partly typed; this class is where that ends.
        self.client: Any = redis_asyncio.Redis(connection_pool=pool)
        self.client.response_callbacks.clear()

    async def execute(self, *command: Argument) -> Reply:
        with storage_errors(self.latency):
            return await self.client.execute_command(*command)

    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        if not commands:
            return []
        with storage_errors(self.latency):
            return [raise_for_error(reply) for reply in await self.try_pipeline(commands)]

    async def try_pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """As `pipeline`, but with the library's exceptions, and each error in its command's place: the library would
        prefix an error with the command, which may contain a secret."""
        async with self.client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=False)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        command = (script.sha, len(keys), *keys, *args)
        try:
            with storage_errors(self.latency):
                return await self.client.execute_command("EVALSHA", *command)
        except NoScriptError:
            with storage_errors(self.latency):
                return await self.client.execute_command("EVAL", script.source, *command[1:])

    async def run_many(self, script: Script, calls: Sequence[Call]) -> list[Reply]:
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        try:
            return await self.pipeline(commands)
        except NoScriptError:
            await self.execute("SCRIPT", "LOAD", script.source)
            return await self.pipeline(commands)

    async def run_each(self, script: Script, calls: Sequence[Call]) -> list[Reply | Exception]:
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        with storage_errors(self.latency):
            replies = await self.try_pipeline(commands)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self.execute("SCRIPT", "LOAD", script.source)
            missed = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            with storage_errors(self.latency):
                again = await self.try_pipeline([commands[at] for at in missed])
            for at, reply in zip(missed, again, strict=True):
                replies[at] = reply
        return [in_place(reply) for reply in replies]

    async def info(self, section: str, group: str) -> bytes:
        return await self.execute("INFO", section)

    async def close(self) -> None:
        await self.client.aclose(close_connection_pool=True)


class _ShrinkingPool(redis_asyncio.BlockingConnectionPool):
    """Closes connections that were not used for IDLE seconds: a burst opens as many as it has concurrent commands."""

    _timer: asyncio.TimerHandle | None = None
    _closing: set[asyncio.Task[None]]

    async def release(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        connection.free_since = loop.time()
        await super().release(connection)
        if self._timer is None:
            self._timer = loop.call_later(IDLE / 2, self._close_idle)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        # Sorted by idle time, longest first, because the pool hands out the last one.
        free = cast("list[_MasterConnection]", self._available_connections)
        count = bisect_left(free, loop.time() - IDLE, key=lambda connection: connection.free_since)
        gone, free[:] = free[:count], free[count:]
        self._closing = {loop.create_task(connection.disconnect(nowait=True)) for connection in gone}
        self._timer = loop.call_later(IDLE / 2, self._close_idle) if free else None


class _MasterConnection(AbstractConnection):
    """Resolves the master at every connect, and reconnects once the master has changed. Connects, authenticates and
    selects the database as RespConnection does."""

    def __init__(self, *, topology: Topology, **options: Any) -> None:
        self._topology = topology
        self._node: Node = ("", 0)
        self._refused = False
        self._connected_at = 0.0
        self.free_since = 0.0
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]

    @property
    def _address(self) -> RedisUrl:
        return self._topology.address

    async def connect(self) -> None:
        if self.is_connected and self._is_stale():
            await self.disconnect(nowait=True)
        if self.is_connected:
            return
        self._refused, self._connected_at = False, time.monotonic()
        self._node = self.host, self.port = await self._topology.master()
        try:
            async with asyncio.timeout(self._address.connect_timeout):
                with tls_failures(self._node):
                    await self._connect()
                await self.on_connect()
                await self._greet()
        except BaseException as error:
            await self.disconnect(nowait=True)
            if isinstance(error, OSError) and not isinstance(error, ConnectionRefused):  # arq handles the library's
                kind = RedisTimeoutError if isinstance(error, TimeoutError) else RedisConnectionError
                raise kind(type(error).__name__) from error
            raise

    def _is_stale(self) -> bool:
        suspect = self._connected_at < self._topology.suspect_since
        return self._refused or suspect or self._topology.is_demoted(self._node)

    async def on_connect(self) -> None:
        parser: Any = self._parser
        parser.on_connect(self)

    async def _greet(self) -> None:
        commands = greeting(self._address)
        await self.send_packed_command(self.pack_commands(commands), check_health=False)
        replies: list[Reply] = []
        for _ in commands:
            try:
                replies.append(await self.read_response())
            except AuthenticationError as error:
                raise LoginRefused("it rejects the user name or password") from error
            except RedisConnectionError as error:
                if replies or isinstance(error, BusyLoadingError):
                    raise
                if MANY_CLIENTS in str(error):
                    raise ConnectionRefused(MANY_CLIENTS) from error
                closed = ClosedAtOnce(secure=self._address.tls is not None)
                raise RedisConnectionError(str(closed)) from closed
            except NoPermissionError as error:  # the library removes the first word
                replies.append(RespError(f"NOPERM {error}"))
            except ResponseError as error:
                replies.append(RespError(str(error)))
        check_greeting(commands, replies, self._node)

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # pyright: ignore
        except RuntimeError as error:
            if "closed" in str(error):  # uvloop's error for a write to a connection that was reset
                raise RedisConnectionError(str(error)) from error
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # pyright: ignore
        except ResponseError as error:
            self._refused = is_demoted(error)
            raise
        except RedisTimeoutError:
            self._topology.mark_suspect()
            raise
        except RedisConnectionError as error:
            if isinstance(error.__context__, ssl.SSLError):
                raise TlsFailed(tls.failure(error.__context__, self._node[0])) from error
            raise


class _TcpConnection(_MasterConnection, Connection):
    def __init__(self, **options: Any) -> None:
        super().__init__(socket_keepalive=True, socket_keepalive_options=KEEPALIVE, **options)

    def _connection_arguments(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port, **tls_arguments(self._address)}


class _UnixConnection(_MasterConnection, UnixDomainSocketConnection):
    def __init__(self, *, topology: Topology, **options: Any) -> None:
        super().__init__(topology=topology, path=topology.address.path, **options)

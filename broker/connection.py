"""Connections to Redis: a pool for short commands, and the address for the raw ones (broker/resp.py).

Replies come as Redis sends them, bytes in lists: the library's own conversions cost more than the commands
and hide the order of a stream entry's fields, which the hot paths rely on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio as redis_asyncio
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.errors import StorageUnavailable

Argument = bytes | str | int | float
Reply = Any  # bytes, int, None or a list of them, as the command has it


class Script:
    """One of `broker/scripts/*.lua`, its `--#include` lines resolved. Loads itself where Redis lacks it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = _source(name)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def _source(name: str) -> str:
    text = files("broker").joinpath("scripts", f"{name}.lua").read_text("utf-8")
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("--#include "):
            lines.append(_source(line.removeprefix("--#include ").strip()))
        else:
            lines.append(line)
    return "\n".join(lines)


class Redis:
    """A pool of connections for commands that answer at once. Raises StorageUnavailable where Redis is away,
    loading, read-only or full; never retries by itself, since only the caller knows what may be repeated."""

    def __init__(self, url: str, *, socket_timeout: float = 5.0, max_connections: int = 64) -> None:
        self.url = url
        # The library's asyncio half is only partly typed; this class is where that ends.
        pool: Any = redis_asyncio.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            max_connections=max_connections,
            timeout=socket_timeout,
            socket_timeout=socket_timeout,
            socket_connect_timeout=2.0,
            socket_keepalive=True,
            socket_keepalive_options=KEEPALIVE,
            health_check_interval=15,
        )
        self.client: Any = redis_asyncio.Redis(connection_pool=pool)
        self.client.response_callbacks.clear()

    async def execute(self, *command: Argument) -> Reply:
        with translated():
            return await self.client.execute_command(*command)

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """All commands in one round trip, not atomic. A single command's error is raised."""
        if not commands:
            return []
        with translated():
            async with self.client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        """One EVALSHA; loads the script first where a restart or a failover forgot it."""
        command = (script.sha, len(keys), *keys, *args)
        try:
            with translated():
                return await self.client.execute_command("EVALSHA", *command)
        except NoScriptError:
            with translated():
                return await self.client.execute_command("EVAL", script.source, *command[1:])

    async def run_many(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Reply]:
        """The same script with several key sets, in one round trip."""
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        try:
            return await self.pipeline(commands)
        except NoScriptError:
            await self.execute("SCRIPT", "LOAD", script.source)
            return await self.pipeline(commands)

    async def trouble(self) -> str | None:
        """Why it cannot be used; None if it can."""
        try:
            await self.execute("PING")
        except StorageUnavailable as error:
            return error.message
        return None

    async def answering(self, log: logging.Logger) -> None:
        """Until it can be used. Says what is the matter, once for each matter, and when it is over."""
        delay, said = 0.1, None
        while trouble := await self.trouble():
            if trouble != said:
                log.warning("%s Trying %s again.", trouble, without_password(self.url))
                said = trouble
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, 5.0)
        if said:
            log.info("Redis answers at %s", without_password(self.url))

    async def close(self) -> None:
        await self.client.aclose(close_connection_pool=True)


class translated:  # noqa: N801 - reads as a word in `with translated():`
    """Turns what the library raises into StorageUnavailable, but for errors that a caller can act on."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, AuthenticationError):
            raise StorageUnavailable("Redis refuses the name or the password.") from error
        if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError, asyncio.TimeoutError)):
            raise StorageUnavailable from error
        if isinstance(error, _REFUSALS) or (isinstance(error, ResponseError) and str(error).startswith(_REFUSING)):
            raise StorageUnavailable(f"Redis refuses: {error}") from error


# Of the server's state or of our rights there, not of the command: nobody but its operator can do anything. The
# library has classes for some, and takes their first word away; the rest are known by it.
_REFUSALS = (OutOfMemoryError, ReadOnlyError, NoPermissionError)
_REFUSING = ("MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "BUSY", "DENIED")

# A dead peer is noticed after 15 + 3 × 5 s: without this a half-open connection waits for ever.
KEEPALIVE: dict[int, int | bytes] = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def without_password(url: str) -> str:
    """The URL as it may stand in a log."""
    parts = urlsplit(url)
    if parts.password is None and parts.username is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"***@{host}"))


@asynccontextmanager
async def connect_redis(url: str, **options: Any) -> AsyncGenerator[Redis, None]:
    pool = Redis(url, **options)
    try:
        yield pool
    finally:
        await pool.close()


__all__ = ["KEEPALIVE", "Redis", "RedisError", "Reply", "Script", "connect_redis", "translated", "without_password"]

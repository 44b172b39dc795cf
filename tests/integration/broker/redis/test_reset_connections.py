"""A peer that resets every connection: a storage error and never a crash, on uvloop."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.errors import StorageUnavailable
from broker.redis.client import open_pool
from tests.support import DEADLINE


@contextmanager
def resetting_server() -> Iterator[int]:
    """Accept and reset connections, like a proxy whose server is down. Yields the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:

        def serve() -> None:
            try:
                while True:
                    peer, _ = listening.accept()
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.close()
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=DEADLINE)


async def refused(command: Callable[[], Awaitable[object]], error: type[Exception]) -> int:
    """The number of failures with this error in 1,000 calls, twenty at a time."""
    count = 0

    async def some() -> None:
        nonlocal count
        for _ in range(50):
            try:
                await command()
            except error:
                count += 1

    await asyncio.gather(*(some() for _ in range(20)))
    return count


def test_a_reset_before_the_first_command_is_a_connection_error() -> None:
    """For a write to a reset connection, uvloop raises RuntimeError where asyncio raises OSError; about 50 of 2,000
    commands are affected. Our callers and arq, which uses the library's client, must not see it."""

    async def both(port: int) -> tuple[int, int]:
        redis = open_pool(f"redis://127.0.0.1:{port}/0")
        try:
            ours = await refused(lambda: redis.execute("PING"), StorageUnavailable)
            return ours, await refused(lambda: redis.client.execute_command("PING"), RedisConnectionError)
        finally:
            await redis.close()

    with resetting_server() as port:
        assert uvloop.run(both(port)) == (1000, 1000)

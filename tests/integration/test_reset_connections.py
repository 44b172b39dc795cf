"""A peer that resets every connection: trouble of the storage, never a crash, on the event loop that processes run."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from broker.connection import connect_redis
from broker.errors import StorageUnavailable


@contextmanager
def resetting_server() -> Iterator[int]:
    """Accepts and resets, as a proxy does whose server is away; gives its port."""
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
        thread.join(timeout=10)


def test_a_reset_before_the_first_command_is_storage_trouble() -> None:
    """uvloop raises RuntimeError for a write to a connection that was reset, where asyncio has an OSError. Of these
    2,000 commands about 50 meet it."""

    async def commands(port: int) -> int:
        refused = 0
        async with connect_redis(f"redis://127.0.0.1:{port}/0") as redis:

            async def some() -> None:
                nonlocal refused
                for _ in range(100):
                    try:
                        await redis.execute("PING")
                    except StorageUnavailable:
                        refused += 1

            await asyncio.gather(*(some() for _ in range(20)))
        return refused

    with resetting_server() as port:
        assert uvloop.run(commands(port)) == 2000

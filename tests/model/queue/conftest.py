"""The server on which the queue's scripts run, with the clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.model.queue.scripts import with_own_clock
from tests.model.queue.world import QueueWorld
from tests.model.storage import Storage
from tests.support import ENGINES


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.engine)])
def world(request: pytest.FixtureRequest) -> Iterator[QueueWorld]:
    """A queue on its own server."""
    binary = ENGINES[request.param]
    if binary is None:
        pytest.skip(f"{request.param}-server is not installed")
    with asyncio.Runner() as runner, with_own_clock():
        server = EmbeddedRedis(binary=binary)
        runner.run(server.__aenter__())
        storage = Storage(server.port)
        try:
            yield QueueWorld(storage)
        finally:
            storage.close()
            runner.run(server.__aexit__(None, None, None))

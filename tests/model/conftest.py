"""The servers on which the model runs: both engines, and optionally another server program."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.model.world import World, small_limits
from tests.support import ENGINES

ANOTHER = os.environ.get("TOKENCAST_TEST_SERVER")
"""Path of another server program on which the model also runs."""


@pytest.fixture(
    scope="module",
    params=["valkey", pytest.param("redis", marks=pytest.mark.engine), *filter(None, [ANOTHER])],
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world on its own server."""
    binary = ENGINES.get(request.param, request.param)
    if binary is None:
        pytest.skip(f"{request.param}-server is not installed")
    with asyncio.Runner() as runner, small_limits():
        server = EmbeddedRedis(binary=binary)
        runner.run(server.__aenter__())
        try:
            world = World(server.url, server.port)
            yield world
            world.close()
        finally:
            runner.run(server.__aexit__(None, None, None))

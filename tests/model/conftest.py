"""The servers that the model runs on: both engines, and any other one by its path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.model.world import World, small_world
from tests.support import ENGINES

ANOTHER = os.environ.get("TOKENCAST_TEST_SERVER")
"""Path of another server program that the model is to run on too."""


@pytest.fixture(
    scope="module",
    params=["valkey", pytest.param("redis", marks=pytest.mark.engine), *filter(None, [ANOTHER])],
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """On a server of its own."""
    binary = ENGINES.get(request.param, request.param)
    if binary is None:
        pytest.skip(f"not run: there is no {request.param}-server")
    with asyncio.Runner() as runner, small_world():
        server = EmbeddedRedis(binary=binary)
        runner.run(server.__aenter__())
        try:
            world = World(server.url, server.port)
            yield world
            world.close()
        finally:
            runner.run(server.__aexit__(None, None, None))

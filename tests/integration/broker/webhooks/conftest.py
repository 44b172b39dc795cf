"""A broker that may announce to private addresses, and a receiver."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.integration.broker.webhooks.scene import settings
from tests.servers.webhook_receiver import Receiver, webhook_receiver


@pytest.fixture
async def broker(own_redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    async with connect(settings=settings(own_redis.url)) as connected:
        yield connected


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    async with webhook_receiver() as opened:
        yield opened

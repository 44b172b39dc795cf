"""Tells the gateways which models the upstreams have, where the configuration names them by patterns only."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from broker import keys
from broker.connection import Redis, Script
from broker.errors import StorageUnavailable
from broker.settings import Upstream
from worker.failures import UpstreamError
from worker.upstream import Upstreams

NOTE = Script("note")
REFRESH = 600.0  # seconds
AGAIN = 60.0  # seconds, where an upstream did not answer
log = logging.getLogger("tokencast.worker")


class ModelLists:
    """`run` for ever."""

    def __init__(self, redis: Redis, upstreams: Upstreams) -> None:
        self._redis = redis
        self._upstreams = upstreams

    async def run(self) -> None:
        while True:
            outcomes = [await self._publish(upstream) for upstream in self._upstreams.by_pattern()]
            await asyncio.sleep(REFRESH if all(outcomes) else AGAIN)

    async def _publish(self, upstream: Upstream) -> bool:
        try:
            models = await self._upstreams.models(upstream)
            names = msgspec.json.encode([model for model in models if upstream.serves(model)])
            await self._redis.run(NOTE, (keys.MODELS,), (86_400_000, upstream.name, names))
        except (UpstreamError, StorageUnavailable) as error:
            log.debug("no list of models from %s: %s", upstream.name, error.code)
            return False
        return True

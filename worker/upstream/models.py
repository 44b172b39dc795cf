"""Tells the gateways which models the upstreams have, where the configuration names them by patterns only."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from broker.errors import StorageUnavailable
from broker.redis.client import Redis, Script
from broker.settings.settings import Upstream
from broker.store import keys
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams

NOTE = Script("queue", "put_hash")
REFRESH = 600.0  # seconds
AGAIN = 60.0  # seconds, where an upstream did not answer
MOST = 1000  # models of one upstream that gateways list
log = logging.getLogger("tokencast.worker")


class ModelLists:
    """`run` until cancelled."""

    def __init__(self, redis: Redis, upstreams: Upstreams) -> None:
        self._redis = redis
        self._upstreams = upstreams
        self._told: dict[str, str] = {}
        """By upstream: why there is no list, as it was logged last."""

    async def run(self) -> None:
        await asyncio.gather(*map(self._keep, self._upstreams.by_pattern()))
        await asyncio.Event().wait()

    async def _keep(self, upstream: Upstream) -> None:
        """One upstream's list, however slow the others are."""
        while True:
            try:
                published = await self._publish(upstream)
            except Exception:  # the worker does its work without a list
                log.exception("the list of models from upstream %s", upstream.name)
                published = False
            await asyncio.sleep(REFRESH if published else AGAIN)

    async def _publish(self, upstream: Upstream) -> bool:
        try:
            models = await self._upstreams.models(upstream)
        except UpstreamError as error:
            self._tell(upstream, error.message)
            return False
        self._tell(upstream, "")
        names = msgspec.json.encode([model for model in models if upstream.serves(model)][:MOST])
        try:
            await self._redis.run(NOTE, (keys.MODELS,), (86_400_000, upstream.name, names))
        except StorageUnavailable:  # which others log
            return False
        return True

    def _tell(self, upstream: Upstream, why: str) -> None:
        """Once per change."""
        if why == self._told.get(upstream.name, ""):
            return
        self._told[upstream.name] = why
        if why:
            log.warning("no list of models from upstream %s at %s: %s", upstream.name, upstream.base_url, why)
        else:
            log.info("upstream %s lists its models again", upstream.name)

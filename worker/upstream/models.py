"""Publishes the model lists of upstreams whose models are configured by patterns, for the gateways' `/v1/models`."""

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
AGAIN = 60.0  # seconds until the next try after a failure
MOST = 1000  # maximum number of models listed for one upstream
log = logging.getLogger("tokencast.worker")


class ModelLists:
    """Refreshes the model lists in the queue's Redis; `run` returns only if it is cancelled."""

    def __init__(self, redis: Redis, upstreams: Upstreams) -> None:
        self._redis = redis
        self._upstreams = upstreams
        self._told: dict[str, str] = {}
        """Last logged reason for a missing list, by upstream."""

    async def run(self) -> None:
        await asyncio.gather(*map(self._keep, self._upstreams.by_pattern()))
        await asyncio.Event().wait()

    async def _keep(self, upstream: Upstream) -> None:
        """Keep one upstream's list up to date, independently of slow upstreams."""
        while True:
            try:
                published = await self._publish(upstream)
            except Exception:  # the worker runs generations without a list
                log.exception("cannot read the list of models from upstream %s", upstream.name)
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
        except StorageUnavailable:  # logged by other components
            return False
        return True

    def _tell(self, upstream: Upstream, why: str) -> None:
        """Log the reason once per change."""
        if why == self._told.get(upstream.name, ""):
            return
        self._told[upstream.name] = why
        if why:
            log.warning("no list of models from upstream %s at %s: %s", upstream.name, upstream.base_url, why)
        else:
            log.info("upstream %s lists its models again", upstream.name)

"""Publishes the model lists of upstreams whose models are configured by patterns, for the gateways' `/v1/models`. The
other upstreams are only tried, until they answer: a wrong URL or key is in the log before the first generation."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from broker.errors import StorageUnavailable
from broker.redis.client import Redis, Script
from broker.settings.upstreams import Upstream
from broker.store import keys
from worker.upstream.check import check_upstream
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams

PUT_HASH = Script("queue", "put_hash")
REFRESH_INTERVAL = 600.0  # seconds
RETRY_INTERVAL = 60.0  # seconds until the next try after a failure
MAX_MODELS = 1000  # maximum number of models listed for one upstream
log = logging.getLogger("tokencast.worker")


class ModelLists:
    """Refreshes the model lists in the queue's Redis; `run` returns only if it is cancelled."""

    def __init__(self, redis: Redis, upstreams: Upstreams) -> None:
        self._redis = redis
        self._upstreams = upstreams
        self._logged: dict[str, str] = {}
        """Last logged reason for a missing list, by upstream."""

    async def run(self) -> None:
        listing, trying = self._upstreams.with_patterns(), self._upstreams.with_names()
        await asyncio.gather(*map(self._refresh, listing), *map(self._try, trying))
        await asyncio.Event().wait()

    async def _try(self, upstream: Upstream) -> None:
        """Try an upstream until it answers."""
        while problem := await self._problem_of(upstream):
            if problem != self._logged.get(upstream.name):
                log.warning("upstream %s at %s: %s", upstream.name, upstream.base_url, problem)
            self._logged[upstream.name] = problem
            await asyncio.sleep(RETRY_INTERVAL)
        if upstream.name in self._logged:
            log.info("upstream %s answers", upstream.name)

    async def _refresh(self, upstream: Upstream) -> None:
        """Keep one upstream's list up to date, independently of slow upstreams."""
        while True:
            try:
                published = await self._publish(upstream)
            except Exception:  # the worker runs generations without a list
                log.exception("cannot read the list of models from upstream %s", upstream.name)
                published = False
            await asyncio.sleep(REFRESH_INTERVAL if published else RETRY_INTERVAL)

    async def _problem_of(self, upstream: Upstream) -> str:
        try:
            return (await check_upstream(self._upstreams, upstream)).problem
        except Exception as error:  # the worker runs generations whatever comes of it
            return f"cannot be tried: {type(error).__name__}"

    async def _publish(self, upstream: Upstream) -> bool:
        try:
            models = await self._upstreams.models(upstream)
        except UpstreamError as error:
            self._log_change(upstream, error.message)
            return False
        self._log_change(upstream, "")
        names = msgspec.json.encode([model for model in models if upstream.serves(model)][:MAX_MODELS])
        try:
            await self._redis.run(PUT_HASH, (keys.MODELS,), (86_400_000, upstream.name, names))
        except StorageUnavailable:  # logged by other components
            return False
        return True

    def _log_change(self, upstream: Upstream, reason: str) -> None:
        """Log the reason once per change."""
        if reason == self._logged.get(upstream.name, ""):
            return
        self._logged[upstream.name] = reason
        if reason:
            log.warning("no list of models from upstream %s at %s: %s", upstream.name, upstream.base_url, reason)
        else:
            log.info("upstream %s lists its models again", upstream.name)

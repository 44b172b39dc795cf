"""`GET /v1/overview`: how it goes, in one small answer, for a dashboard that asks every other second."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.requests import by_method
from broker.broker import Broker

MOST = 100  # generations whose subscribers are counted one by one


class Overview:
    """The caller's generations by status, and who follows them at this gateway; the queue and the workers, which
    everybody shares and which `/metrics` tells too."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/overview", GET=self.get)]

    async def get(self, request: Request) -> Response:
        tenant, queue, store = self._access.tenant(request), self._broker.queue, self._broker.store
        counts, waiting, fleet = await asyncio.gather(store.counts(tenant), queue.queue_depth(), queue.workers())
        now = await store.clock.now()
        subscribers = self._access.subscribers
        return JSONResponse(
            {
                "object": "overview",
                "at": now,
                "generations": counts,
                "queue": {"depth": waiting.depth, "oldest_seconds": waiting.longest_wait(now)},
                "workers": [{"slots": worker.slots, "running": worker.running} for worker in fleet],
                "subscribers": {"total": subscribers.total(tenant), "generations": subscribers.of(tenant, MOST)},
            }
        )

"""`GET /v1/overview`: a status summary in one small response, for a dashboard that polls every two seconds."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.requests import by_method
from broker.broker import Broker

MOST = 100  # maximum number of generations whose subscribers are listed


class Overview:
    """The handler of `/v1/overview`.

    It reports the caller's generations by status and their subscribers at this gateway; and the queue and the workers,
    which all tenants share and which `/metrics` reports too.
    """

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/overview", GET=self.get)]

    async def get(self, request: Request) -> Response:
        tenant, queue, store = self._access.tenant(request), self._broker.queue, self._broker.store
        counts, waiting, fleet = await asyncio.gather(store.counts(tenant), queue.waiting(), queue.workers())
        now = await store.clock.now()
        subscribers = self._access.subscribers
        return JSONResponse(
            {
                "object": "overview",
                "at": now,
                "generations": counts,
                "queue": {"depth": waiting.depth, "oldest_seconds": waiting.seconds(now)},
                "workers": [{"slots": worker.slots, "running": worker.running} for worker in fleet],
                "subscribers": {
                    "total": subscribers.total(tenant),
                    "generations": subscribers.by_generation(tenant, MOST),
                },
            }
        )

"""`GET /v1/overview`: a status summary in one small response, for a dashboard that polls every two seconds."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.requests import by_method
from broker.broker import Broker

MOST = 100  # maximum number of generations whose subscribers are listed


Count = Annotated[int, Meta(ge=0)]


class GenerationCounts(Struct):
    queued: Count
    in_progress: Count
    completed: Count
    failed: Count
    cancelled: Count


class QueueStatus(Struct):
    depth: Count
    oldest_seconds: Annotated[float, Meta(description="Waiting time of the first generation in the queue.")]


class WorkerStatus(Struct):
    slots: Count
    running: Count


class SubscriberCounts(Struct):
    total: Count
    generations: Annotated[dict[str, Count], Meta(description="Of the most followed generations.")]


class Overview(Struct, tag_field="object", tag="overview"):
    """A status summary."""

    at: Annotated[float, Meta(description="Unix seconds, by the clock of Redis.")]
    generations: Annotated[
        GenerationCounts, Meta(description="The caller's generations by status; for operators those of all tenants.")
    ]
    queue: Annotated[QueueStatus, Meta(description="The queue of all tenants.")]
    workers: list[WorkerStatus]
    subscribers: Annotated[SubscriberCounts, Meta(description="The caller's open streams at this gateway.")]


class OverviewRoutes:
    """The handler of `/v1/overview`.

    It reports the caller's generations by status and their subscribers at this gateway; and the queue and the workers,
    which all tenants share and which `/metrics` reports too. An operator's are those of all tenants, or of `?tenant=`.
    """

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/overview", GET=self.get)]

    async def get(self, request: Request) -> Response:
        tenant, queue, store = self._access.scope(request), self._broker.queue, self._broker.store
        counts, waiting, fleet = await asyncio.gather(store.counts(tenant), queue.queue_depth(), queue.workers())
        now = await store.clock.now()
        subscribers = self._access.subscribers
        return JSONResponse(
            Overview(
                at=now,
                generations=GenerationCounts(**counts),
                queue=QueueStatus(waiting.depth, waiting.longest_wait(now)),
                workers=[WorkerStatus(worker.slots, worker.running) for worker in fleet],
                subscribers=SubscriberCounts(subscribers.total(tenant), subscribers.by_generation(tenant, MOST)),
            )
        )

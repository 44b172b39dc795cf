"""`GET /v1/generations/{id}/subscribers`: who follows a generation, and how far behind."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.openapi_parts import Json, answer, errors_with_key, json_of, operation
from api.query import check_known
from api.requests import by_method
from broker.broker import Broker
from broker.fanout.subscriber import Subscriber
from broker.history.records import SubscriberRecord
from broker.history.subscribers import SubscriberReports


class SubscriberRoutes:
    """The handler; `reports.run` must run in the background."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access
        self.reports = SubscriberReports(broker.queue.redis, broker.history.clock, self._local)

    def routes(self) -> list[Route]:
        return [by_method("/v1/generations/{id}/subscribers", GET=self.get)]

    async def get(self, request: Request) -> Response:
        gid: str = request.path_params["id"]
        tenant = await self._access.owner(request, gid)
        check_known(request)
        await self._broker.store.state(gid, tenant)
        return JSONResponse(await self.reports.of(gid))

    def _local(self, gid: str) -> list[SubscriberRecord]:
        now = self._broker.history.clock.estimate() - time.monotonic()
        return [self._record(one, now) for one in self._broker.hub.subscribers_of(gid)]

    def _record(self, subscriber: Subscriber, offset: float) -> SubscriberRecord:
        """`offset`: what unix time is ahead of the monotonic one."""
        return SubscriberRecord(
            gateway=self.reports.gateway,
            dialect=subscriber.dialect,
            since=round(subscriber.since + offset, 3),
            cursor=str(subscriber.position),
            lag_events=subscriber.lag,
            unread_bytes=subscriber.wire.pending,
            stalled=subscriber.stalled is not None,
        )


def paths() -> Json:
    return {
        "/v1/generations/{id}/subscribers": {
            "get": operation(
                "listSubscribers",
                "List the open streams of a generation at all gateways, and how far they are behind",
                _200=answer("The subscribers.", json_of("SubscriberList")),
                **errors_with_key("400", "404", "410"),
            )
        }
    }

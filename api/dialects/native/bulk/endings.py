"""`POST /v1/generations/cancel` and `POST /v1/generations/delete`: all generations that match."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.dialects.native.bulk.batch import items_of
from api.dialects.native.bulk.matching import CancelRequest, DeleteRequest, Matching, conditions_of, parse_matching
from api.errors import JSONResponse
from api.query import check_known
from api.requests import FixedRoute, by_method, read_body
from api.server.memory import reserve
from broker import records
from broker.broker import Broker

Kind = TypeVar("Kind", bound=Matching)


class EndingRoutes:
    """The handlers of bulk cancellations and deletions. Both may be repeated."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [
            by_method("/v1/generations/cancel", FixedRoute, POST=self.cancel),
            by_method("/v1/generations/delete", FixedRoute, POST=self.delete),
        ]

    async def cancel(self, request: Request) -> Response:
        asked, tenant = await self._asked(request, CancelRequest)
        status = asked.status or ("queued", "in_progress")
        done = await self._broker.cancel_all(
            limit=asked.limit, dry_run=asked.dry_run, tenant=tenant, **conditions_of(asked, status)
        )
        async with reserve(request, tenant):
            data = items_of(done.data, named=self._access.names_tenants(request))
            return JSONResponse(records.CancelResult(done.matched, done.cancelled, data, done.has_more))

    async def delete(self, request: Request) -> Response:
        asked, tenant = await self._asked(request, DeleteRequest)
        done = await self._broker.delete_all(
            limit=asked.limit, dry_run=asked.dry_run, tenant=tenant, **conditions_of(asked, asked.status)
        )
        async with reserve(request, tenant):
            data = items_of(done.data, named=self._access.names_tenants(request))
            return JSONResponse(records.DeleteResult(done.matched, done.deleted, data, done.has_more))

    async def _asked(self, request: Request, kind: type[Kind]) -> tuple[Kind, str]:
        """Return what the body asks for, and the tenant of the generations."""
        self._access.tenant(request)
        check_known(request)
        asked = parse_matching(await read_body(request, self._broker.settings.max_body), kind)
        return asked, self._access.one_tenant(request, asked.tenant)

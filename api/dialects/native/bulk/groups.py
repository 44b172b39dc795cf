"""`/v1/groups/{name}`: generations that belong together, counted and cancelled as one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.query import check_known, text_of
from api.requests import by_method
from broker.broker import Broker


class GroupRoutes:
    """The handlers of groups. A name is percent-encoded in a path and may contain slashes; the last part of the path of
    a POST is always `cancel`. Each tenant has its own groups; an operator names the tenant in `?tenant=`."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [
            by_method("/v1/groups/{name:path}/cancel", POST=self.cancel),
            by_method("/v1/groups/{name:path}", GET=self.get),
        ]

    def _tenant(self, request: Request) -> str:
        tenant = self._access.one_tenant(request, text_of(request, "tenant"))
        check_known(request, "tenant")
        return tenant

    async def get(self, request: Request) -> Response:
        tenant = self._tenant(request)
        return JSONResponse(await self._broker.group(request.path_params["name"], tenant=tenant))

    async def cancel(self, request: Request) -> Response:
        tenant = self._tenant(request)
        return JSONResponse(await self._broker.cancel_group(request.path_params["name"], tenant=tenant))

"""`POST /v1/generations/{id}/retry` and `POST /v1/generations/retry`: ended generations again, as new ones."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.dialects.native.bulk.batch import items_of
from api.dialects.native.bulk.matching import RetryRequest, conditions_of, parse_matching
from api.errors import JSONResponse
from api.middleware.crash import ACCEPTED
from api.query import check_known
from api.requests import FixedRoute, by_method, idempotency_key_of, read_body
from api.server.memory import reserve
from broker import records
from broker.broker import Broker
from broker.errors import InvalidRequest
from broker.request.body import parse_json


class RetryRoutes:
    """The handlers of retries."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [
            by_method("/v1/generations/retry", FixedRoute, POST=self.retry_all),
            by_method("/v1/generations/{id}/retry", POST=self.retry),
        ]

    async def retry(self, request: Request) -> Response:
        gid, key, named = request.path_params["id"], idempotency_key_of(request), self._access.names_tenants(request)
        tenant = await self._access.owner(request, gid)
        check_known(request)
        check_empty(await read_body(request, self._broker.settings.max_body))
        request.scope[ACCEPTED] = ""
        generation, replayed = await self._broker.submit_retry(gid, tenant, key)
        request.scope[ACCEPTED] = generation.id
        headers = {"location": f"/v1/generations/{generation.id}", "x-generation-id": generation.id}
        if not replayed:
            return JSONResponse(generation.record(named=named), HTTPStatus.ACCEPTED, headers)
        async with reserve(request, tenant, partial(self._broker.store.size, generation.id)):
            generation = await self._broker.get(generation.id, tenant)
            headers["idempotent-replayed"] = "true"
            return JSONResponse(generation.record(named=named), HTTPStatus.OK, headers)

    async def retry_all(self, request: Request) -> Response:
        self._access.tenant(request)
        check_known(request)
        key = idempotency_key_of(request)
        body = await read_body(request, self._broker.settings.max_body)
        asked = parse_matching(body, RetryRequest)
        tenant = self._access.one_tenant(request, asked.tenant)
        request.scope[ACCEPTED] = ""
        retried = await self._broker.retry_all(
            limit=asked.limit,
            dry_run=asked.dry_run,
            idempotency_key=key,
            tenant=tenant,
            **conditions_of(asked, asked.status),
        )
        async with reserve(request, tenant):
            data = items_of(retried.data, named=self._access.names_tenants(request))
            return JSONResponse(records.RetryResult(retried.matched, retried.retried, data, retried.has_more))


def check_empty(body: bytes) -> None:
    """InvalidRequest for the body of a single retry if it has fields: a changed request is not a retry."""
    for name in parse_json(body) if body else ():
        message = f"`{name[:100]}` is not a field of this request; a retry repeats the old one unchanged."
        raise InvalidRequest(message, param=name[:100])

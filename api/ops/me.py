"""`GET /v1/me`: what the caller's key may do, so that a page can leave out what it may not."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import openapi_examples as examples
from api.auth import Access
from api.errors import JSONResponse
from api.openapi_parts import Json, answer, errors_with_key, json_of, operation, schemas_of, with_examples
from api.query import check_known
from api.requests import by_method
from broker.settings.api_keys import Role


class Caller(Struct, tag_field="object", tag="caller", frozen=True):
    """The caller, by its key."""

    tenant: str
    role: Annotated[
        Role,
        Meta(
            description="`read` changes nothing, `operator` sees all tenants and changes the queue. Without API keys "
            "everybody is an operator of one tenant."
        ),
    ]
    tenants: Annotated[list[str], Meta(description="The tenants that have keys and whose generations the caller sees.")]


class CallerRoutes:
    """The handler of `/v1/me`."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/me", GET=self.get)]

    async def get(self, request: Request) -> Response:
        key = self._access.key(request)
        check_known(request)
        return JSONResponse(Caller(key.tenant, key.role, self._access.tenants(request)))


# --- /openapi.json -----------------------------------------------------------------------------------------------

SCHEMAS: Json = with_examples(schemas_of(Caller), Caller=examples.CALLER)


def paths() -> Json:
    return {
        "/v1/me": {
            "get": operation(
                "getCaller",
                "Get the tenant and the role of the caller's key",
                _200=answer("The caller.", json_of("Caller")),
                **errors_with_key("400"),
            )
        }
    }

"""`/v1/keys`: the API keys in force, for operators."""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import openapi_examples as examples
from api.auth import Access
from api.errors import JSONResponse
from api.keys import LiveKeys
from api.openapi_parts import Json, answer, errors_with_key, json_of, operation, schemas_of, with_examples
from api.query import check_known
from api.requests import by_method
from broker.auth.key_uses import KeyUses
from broker.settings.api_keys import Role


class Key(Struct):
    """An API key. `key`: the first eight digits of its hash."""

    key: str
    tenant: str
    role: Role
    expires_at: float | None
    last_used_at: float | None


class KeyList(Struct, tag_field="object", tag="list"):
    data: list[Key]


class KeyRoutes:
    """The handler of `/v1/keys`."""

    def __init__(self, access: Access, keys: LiveKeys, uses: KeyUses) -> None:
        self._access = access
        self._keys = keys
        self._uses = uses

    def routes(self) -> list[Route]:
        return [by_method("/v1/keys", GET=self.list)]

    async def list(self, request: Request) -> Response:
        self._access.require_operator(request)
        check_known(request)
        found = sorted(self._keys.items(), key=lambda item: (item[1].tenant, item[0]))
        return JSONResponse(
            KeyList(
                [
                    Key(digest[:8], key.tenant, key.role, key.expires, await self._uses.last(digest))
                    for digest, key in found
                ]
            )
        )


SCHEMAS: Json = with_examples(schemas_of(KeyList), KeyList=examples.KEYS)


def paths() -> Json:
    listed = answer("The keys, by tenant.", json_of("KeyList"))
    return {
        "/v1/keys": {
            "get": operation(
                "listKeys",
                "List the API keys, their ends and their last uses; for operators",
                _200=listed,
                **errors_with_key("400", "403"),
            )
        }
    }

"""`/v1/models`: the values that a request's `model` may have."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.requests import by_method
from broker.broker import Broker


class Model(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Struct, tag_field="object", tag="list"):
    data: list[Model]


class ModelRoutes:
    """The handlers of `/v1/models…`."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/models", GET=self.list), by_method("/v1/models/{id:path}", GET=self.get)]

    async def list(self, request: Request) -> Response:
        self._access.tenant(request)
        models = (await self._broker.models()).items()
        return JSONResponse(ModelList([_model(*model) for model in models]))

    async def get(self, request: Request) -> Response:
        self._access.tenant(request)
        model = request.path_params["id"]
        if not model or model.endswith("/"):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return JSONResponse(_model(model, self._broker.settings.upstream_for(model).name))


def _model(name: str, upstream: str) -> Model:
    return Model(name, "model", created=0, owned_by=upstream)

"""`/v1/queue` and `/v1/upstreams`: what waits and why, what the upstreams take, pauses, and limits at run time."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import openapi_examples as examples
from api.auth import Access
from api.errors import JSONResponse
from api.openapi_parts import STRING, Json, answer, errors_with_key, json_of, operation, schemas_of, with_examples
from api.query import check_known
from api.requests import by_method, read_body
from broker.broker import Broker
from broker.errors import InvalidRequest
from broker.records import QueueRecord, UpstreamList
from broker.waiting.control import HIGHEST_LIMIT

_Body = TypeVar("_Body", bound=Struct)
Limit = Annotated[int, Meta(ge=1, le=HIGHEST_LIMIT)]


class Pause(Struct, forbid_unknown_fields=True, frozen=True):
    """What to pause or resume: an upstream, a tenant, or without fields everything."""

    upstream: str | UnsetType = UNSET
    tenant: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class UpstreamPatch(Struct, forbid_unknown_fields=True, frozen=True):
    """Limits at run time; null removes one, and the configured limit applies again."""

    max_concurrency: Limit | UnsetType | None = UNSET
    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET


class QueueRoutes:
    """The handlers of `/v1/queue…` and `/v1/upstreams…`. Changes need the role `operator`."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [
            by_method("/v1/queue", GET=self.queue),
            by_method("/v1/queue/pause", POST=self.pause),
            by_method("/v1/queue/resume", POST=self.resume),
            by_method("/v1/upstreams", GET=self.upstreams),
            by_method("/v1/upstreams/{name:path}", PATCH=self.change),
        ]

    async def queue(self, request: Request) -> Response:
        self._access.tenant(request)
        check_known(request)
        return JSONResponse(await self._broker.queue_state())

    async def pause(self, request: Request) -> Response:
        return JSONResponse(await self._broker.pause(**await self._part(request)))

    async def resume(self, request: Request) -> Response:
        return JSONResponse(await self._broker.resume(**await self._part(request)))

    async def _part(self, request: Request) -> dict[str, str]:
        """Return the upstream and the tenant of the request body; a request without them applies to everything. A null
        is refused, because the caller has probably lost the name."""
        self._access.require_operator(request)
        check_known(request)
        asked = _parse(await self._body(request) or b"{}", Pause)
        given = {"upstream": asked.upstream, "tenant": asked.tenant}
        return {name: value for name, value in given.items() if value is not UNSET}

    async def upstreams(self, request: Request) -> Response:
        self._access.tenant(request)
        check_known(request)
        return JSONResponse(UpstreamList(await self._broker.upstreams()))

    async def change(self, request: Request) -> Response:
        self._access.require_operator(request)
        check_known(request)
        name, patch = request.path_params["name"], _parse(await self._body(request), UpstreamPatch)
        given = {limit: getattr(patch, limit) for limit in UpstreamPatch.__struct_fields__ if limit != "paused"}
        limits = {limit: value for limit, value in given.items() if value is not UNSET}
        record = await self._broker.set_upstream_limits(name, **limits)
        if patch.paused is not UNSET:
            await (self._broker.pause if patch.paused else self._broker.resume)(upstream=name)
            record = await self._broker.upstream(name)
        return JSONResponse(record)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._broker.settings.max_body)


def _parse(body: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise InvalidRequest(f"{message}.", param=path.rstrip("`") or None, code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from None


# --- /openapi.json -----------------------------------------------------------------------------------------------

SCHEMAS: Json = with_examples(
    schemas_of(QueueRecord, UpstreamList, Pause, UpstreamPatch),
    QueueRecord=examples.QUEUE,
    UpstreamList=examples.UPSTREAMS,
    UpstreamRecord=examples.UPSTREAM,
)


def paths() -> Json:
    queue = answer("The queue.", json_of("QueueRecord"))
    errors = errors_with_key("400", "404", "413")
    name = {"name": "name", "in": "path", "required": True, "schema": STRING, "description": "Percent-encoded."}
    pause = operation(
        "pauseQueue",
        "Start no waiting generation of an upstream, of a tenant, or none at all; for operators",
        body="Pause",
        examples=examples.PAUSE,
        optional_body=True,
        _200=queue,
        **errors,
    )
    resume = operation(
        "resumeQueue",
        "End a pause; for operators",
        body="Pause",
        optional_body=True,
        examples=examples.PAUSE,
        _200=queue,
        **errors,
    )
    change = operation(
        "changeUpstream",
        "Change the limits of an upstream at run time, pause or resume it; for operators",
        body="UpstreamPatch",
        examples=examples.UPSTREAM_PATCH,
        _200=answer("The upstream after the change.", json_of("UpstreamRecord")),
        **errors,
    )
    listed = answer("The upstreams.", json_of("UpstreamList"))
    return {
        "/v1/queue": {
            "get": operation(
                "getQueue", "Count what waits, by priority and reason", _200=queue, **errors_with_key("400")
            )
        },
        "/v1/queue/pause": {"post": pause},
        "/v1/queue/resume": {"post": resume},
        "/v1/upstreams": {
            "get": operation(
                "listUpstreams",
                "List the upstreams, their limits and their calls",
                _200=listed,
                **errors_with_key("400"),
            )
        },
        "/v1/upstreams/{name}": {"parameters": [name], "patch": change},
    }

"""`/openapi.json`: the machine-readable description of the HTTP interface.

One test compares it with the routes, their parameters and their responses; another one runs schemathesis against a real
gateway. Each dialect describes its own routes; the others are described here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import openapi_examples as examples
from api.dialects.base import DialectApi
from api.errors import Error, JSONResponse
from api.openapi_parts import (
    ID,
    OF_TENANT,
    SHARED_SCHEMAS,
    STRING,
    Json,
    answer,
    errors_with_key,
    json_of,
    operation,
    public,
    schemas_of,
    with_examples,
)
from api.ops import history, keys, me, queue, subscribers, workers
from api.ops.health import Status
from api.ops.models import ModelList
from api.ops.overview import Overview
from api.pages.docs import SECURITY, page
from broker.history.records import HistoryRecord, SubscriberList
from broker.version import __version__

_SCHEMAS = {
    **with_examples(
        schemas_of(Error, ModelList, Overview, Status, HistoryRecord, SubscriberList),
        Model=examples.MODEL,
        ModelList=examples.MODELS,
        Overview=examples.OVERVIEW,
        Status=examples.READY,
        HistoryRecord=examples.HISTORY,
        SubscriberList=examples.SUBSCRIBERS,
    ),
    **queue.SCHEMAS,
    **workers.SCHEMAS,
    **keys.SCHEMAS,
    **me.SCHEMAS,
}


class OpenApi:
    """The handlers of `/openapi.json` and `/docs`."""

    def __init__(self, dialects: Sequence[DialectApi]) -> None:
        self._dialects = tuple(dialects)

    def routes(self) -> list[Route]:
        return [Route("/openapi.json", self.json), Route("/docs", self.html)]

    async def json(self, _: Request) -> Response:
        return JSONResponse(document(self._dialects), headers={"cache-control": "no-cache"})

    async def html(self, _: Request) -> Response:
        return Response(page(), headers=SECURITY, media_type="text/html")


@cache
def document(dialects: tuple[DialectApi, ...]) -> Json:
    paths = {**_dialects(dialects), **_overview(), **me.paths(), **keys.paths(), **queue.paths(), **history.paths()}
    paths |= {**workers.paths(), **subscribers.paths(), **_models(), **_operation()}
    schemas = {**SHARED_SCHEMAS, **_SCHEMAS}
    for dialect in dialects:
        schemas |= dialect.schemas
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokencast",
            "version": __version__,
            "description": "A fan-out stream broker for LLM completions: one upstream call, one durable log, any "
            "number of readers.\n\nErrors have OpenAI's shape, and every response has an `x-request-id`. A request "
            "whose head is too long is answered with 431, one that is not received in time with 408.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This gateway"}],
        "security": [{"key": []}, {}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": {path: _tagged(path, _with_id(path, item)) for path, item in paths.items()},
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Required if TOKENCAST_API_KEYS is set."},
                "token": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "token",
                    "description": "Grants read access to one generation; for EventSource, which cannot send a key.",
                },
            },
            "schemas": schemas,
        },
    }


_TAGS = {
    "Generations": "Enqueue a completion, read it, cancel it, delete it.",
    "Streams": "Follow generations as server-sent events, from any event on. A stream ends with its generations; only "
    "`/v1/activity` does not end.",
    "Chat completions": "OpenAI's interface. Its SDKs need only another `base_url` and key.",
    "Batches and groups": "Many generations at once: enqueue, count, cancel, retry.",
    "Webhooks": "The attempts to announce the end of a generation to a URL.",
    "Queue": "What waits and why; pauses, and limits of upstreams at run time.",
    "Models": "The values of `model`.",
    "Operation": "Probes, metrics, and this description.",
}
_TAGS_OF_PATHS = (
    (r"/v1/(events|activity)$|/v1/generations/\{id\}/(events|token|subscribers)$", "Streams"),
    (r"/v1/generations/\{id\}/deliveries", "Webhooks"),
    (r"/v1/groups/|/v1/generations/(batch|retry|cancel|delete)$|/v1/generations/\{id\}/retry$", "Batches and groups"),
    (r"/v1/generations", "Generations"),
    (r"/v1/chat/", "Chat completions"),
    (r"/v1/(queue|upstreams)", "Queue"),
    (r"/v1/models", "Models"),
    (r"", "Operation"),
)
"""The first pattern that a path begins with determines the tag of its operations."""


def _tag(path: str) -> str:
    return next(tag for pattern, tag in _TAGS_OF_PATHS if re.match(pattern, path))


def _tagged(path: str, item: Json) -> Json:
    tags = [_tag(path)]
    return {key: value if key == "parameters" else {**value, "tags": tags} for key, value in item.items()}


def _with_id(path: str, item: Json) -> Json:
    if "{id}" not in path:
        return item
    schema = STRING if path.startswith("/v1/models") else ID
    return {"parameters": [{"name": "id", "in": "path", "required": True, "schema": schema}], **item}


def _dialects(dialects: Sequence[DialectApi]) -> Json:
    return {path: item for dialect in dialects for path, item in dialect.paths().items()}


def _overview() -> Json:
    return {
        "/v1/overview": {
            "get": operation(
                "getOverview",
                "Get a status summary: generations by status, the queue, the workers, the subscribers here",
                OF_TENANT,
                _200=answer("The current state.", json_of("Overview")),
                **errors_with_key(),
            )
        }
    }


def _models() -> Json:
    listed, one = answer("The models.", json_of("ModelList")), answer("The model.", json_of("Model"))
    return {
        "/v1/models": {
            "get": operation("listModels", "List the models of all upstreams", _200=listed, **errors_with_key())
        },
        "/v1/models/{id}": {"get": operation("getModel", "Get a model", _200=one, **errors_with_key("404"))},
    }


def _operation() -> Json:
    status, not_ready = json_of("Status"), json_of("Status", examples.NOT_READY)
    text: Json = {"text/plain": {"schema": STRING}, "application/openmetrics-text": {"schema": STRING}}
    return {
        "/healthz": {
            "get": public(operation("alive", "Liveness probe", _200=answer("The process is running.", status)))
        },
        "/readyz": {
            "get": public(
                operation(
                    "ready",
                    "Readiness probe: Redis is reachable and the gateway is not stopping",
                    _200=answer("The gateway can receive traffic.", status),
                    _503=answer("The gateway must not receive traffic; `reason` says why.", not_ready),
                )
            )
        },
        "/metrics": {
            "get": public(operation("metrics", "Get metrics for Prometheus", _200=answer("The metrics.", text)))
        },
        "/openapi.json": {
            "get": public(
                operation(
                    "openapi",
                    "Get this description of the interface",
                    _200=answer("An OpenAPI 3.1 document.", {"application/json": {"schema": {"type": "object"}}}),
                )
            )
        },
        "/docs": {
            "get": public(
                operation(
                    "docs",
                    "Get this description as a page that can send requests",
                    _200=answer("The page.", {"text/html": {"schema": STRING}}),
                )
            )
        },
    }

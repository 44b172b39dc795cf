"""`/openapi.json`: what this gateway answers, for machines. A test holds it against the routes, what they read and what
they answer; another has schemathesis try it on a real gateway.

A new route is one entry in `_paths`: a summary, its parameters, its body, and its answers by status.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.dialects.native.multiplex import MAX_GENERATIONS
from api.dialects.native.paced import FASTEST, SLOWEST
from api.errors import JSONResponse
from api.ops.docs import SECURITY, page
from api.ops.schemas import CURSOR, ID, SCHEMAS, STRING, ref, whole
from broker.events import STATUSES
from broker.version import __version__

Json = dict[str, Any]

_ERRORS = {
    "400": "What was asked for is not valid; `param` says what of it.",
    "401": "No key, or none that is known here.",
    "403": "Without API keys: another site's page, or a host name that is not the gateway's.",
    "404": "There is none, or it is another tenant's.",
    "409": "The generation was cancelled.",
    "410": "It was deleted, or its retention is over.",
    "413": "The body is longer than TOKENCAST_MAX_BODY.",
    "415": "The body is compressed, or not JSON by its Content-Type.",
    "422": "The Idempotency-Key stands for another body; or what the upstream says of the request.",
    "429": "A limit of the caller's, or the upstream's; `Retry-After` says when to come back.",
    "500": "Something went wrong, here or in every attempt.",
    "502": "The upstream failed, or does not know us.",
    "503": "Redis is away, the gateway is full, or it is being restarted; `Retry-After` says when to come back.",
    "504": "The upstream said nothing in time.",
}
_OF_THE_UPSTREAM = ("409", "413", "422", "429", "500", "502", "504")
_EVENT_STREAM: Json = {"text/event-stream": {"schema": ref("StreamEvent")}}


class OpenApi:
    """The handlers of `/openapi.json` and `/docs`."""

    def routes(self) -> list[Route]:
        return [Route("/openapi.json", self.machine), Route("/docs", self.people)]

    async def machine(self, _: Request) -> Response:
        return JSONResponse(document(), headers={"cache-control": "no-cache"})

    async def people(self, _: Request) -> Response:
        return Response(page(document()), headers=SECURITY, media_type="text/html")


@cache
def document() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokencast",
            "version": __version__,
            "description": "A fan-out stream broker for LLM completions: one upstream call, one durable log, any "
            "number of readers.\n\nErrors have OpenAI's shape, and every answer an `x-request-id`. A request whose "
            "head is too long is answered 431, one that does not come in time 408.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"key": []}, {}],
        "paths": {path: _with_id(path, item) for path, item in _paths().items()},
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Where TOKENCAST_API_KEYS is set."},
                "token": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "token",
                    "description": "Reads one generation, for EventSource, which cannot send a key.",
                },
            },
            "schemas": SCHEMAS,
        },
    }


def _with_id(path: str, item: Json) -> Json:
    if "{id}" not in path:
        return item
    schema = STRING if path.startswith("/v1/models") else ID
    return {"parameters": [{"name": "id", "in": "path", "required": True, "schema": schema}], **item}


def _paths() -> Json:
    return {**_generations(), **_events(), **_several(), **_overview(), **_chat(), **_models(), **_operation()}


# --- the parts of an operation -------------------------------------------------------------------------------


def _does(
    name: str, summary: str, *parameters: Json, body: str = "", optional_body: bool = False, **more: Json
) -> Json:
    """An operation. `more`: its answers, `_200` and so on, and `links`."""
    found: Json = {"operationId": name, "summary": summary}
    more |= _errors("403", "415") if body else _errors("403")
    if parameters:
        found["parameters"] = list(parameters)
    if body:
        found["requestBody"] = {"required": not optional_body, "content": _json(body)}
    found["responses"] = {status.removeprefix("_"): answer for status, answer in sorted(more.items())}
    return found


def _reads(operation: Json) -> Json:
    """It may be asked with a stream token too."""
    return {**operation, "security": [{"key": []}, {"token": []}, {}]}


def _open(operation: Json) -> Json:
    return {**operation, "security": []}


def _json(schema: str) -> Json:
    return {"application/json": {"schema": ref(schema)}}


def _answer(description: str, content: Json | None = None, *headers: str) -> Json:
    found: Json = {"description": description}
    if headers:
        found["headers"] = {name: {"schema": STRING} for name in headers}
    if content is not None:
        found["content"] = content
    return found


def _errors(*statuses: str) -> Json:
    return {f"_{status}": _answer(_ERRORS[status], _json("Error")) for status in sorted(statuses)}


def _errors_with_key(*statuses: str) -> Json:
    """Those of an operation that may need a key, besides its own."""
    return _errors("401", "503", *statuses)


_PAGE = (
    "A page. It may hold fewer than `limit`, or none, while `has_more` is true: go on behind its last, or ask again."
)


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


_LAST_EVENT_ID = (
    _header("Last-Event-ID", STRING, "The last `id:` that was received. Wins over `after`."),
    _query("lastEventId", STRING, "The same, as EventSource polyfills send it. The header wins."),
)
_BARE = _query("bare", {"enum": ["true", "false"]}, "Of a stream: nothing but `data:` lines, no ids and no heartbeats.")
_IDEMPOTENCY = _header(
    "Idempotency-Key",
    {"type": "string", "maxLength": 255},
    "The same key and body is the same generation.",
)
_LINKS: Json = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("getGeneration", "followGeneration", "cancelGeneration", "createToken", "getChatCompletion")
}

# --- the routes ----------------------------------------------------------------------------------------------


def _generations() -> Json:
    one = _json("Generation")
    accepted = _answer("Accepted.", one, "Location", "x-generation-id")
    return {
        "/v1/generations": {
            "post": _does(
                "createGeneration",
                "Enqueue a completion",
                _IDEMPOTENCY,
                body="GenerationRequest",
                _200=_answer("It is there already, by its key.", one, "Location", "idempotent-replayed"),
                _202={**accepted, "links": _LINKS},
                **_errors_with_key("400", "404", "413", "422", "429"),
            ),
            "get": _does(
                "listGenerations",
                "The caller's, newest first, without texts",
                _query("status", {"enum": list(STATUSES)}, "Only those."),
                _query("limit", whole(1, 100, 20), "How many."),
                _query("after", {"anyOf": [ID, {"const": ""}]}, "The last one of the page before."),
                _200=_answer(_PAGE, _json("GenerationList")),
                **_errors_with_key("400", "404", "429"),
            ),
        },
        "/v1/generations/{id}": {
            "get": _reads(
                _does(
                    "getGeneration",
                    "One, with its text so far",
                    _query("include", {"enum": ["request"]}, "With what it was asked for; only with a key."),
                    _200=_answer("It.", one),
                    **_errors_with_key("400", "404", "410", "429"),
                )
            ),
            "delete": _does(
                "deleteGeneration",
                "Forget it; one that runs is cancelled, and its followers get `gone`",
                _204=_answer("It is gone."),
                **_errors_with_key("404", "410"),
            ),
        },
        "/v1/generations/{id}/cancel": {
            "post": _does(
                "cancelGeneration",
                "End it, at once; one that has ended stays as it is",
                _200=_answer("As it is now.", one),
                **_errors_with_key("404", "410", "429"),
            )
        },
        "/v1/generations/{id}/token": {
            "post": _does(
                "createToken",
                "A token that reads this one generation, for EventSource",
                body="TokenRequest",
                optional_body=True,
                _200=_answer("The token, and where it opens the stream.", _json("Token")),
                **_errors_with_key("400", "404", "410", "413"),
            )
        },
    }


def _events() -> Json:
    after = {"anyOf": [CURSOR, {"const": "latest"}]}
    speed = {"type": "number", "minimum": SLOWEST, "maximum": FASTEST}
    return {
        "/v1/generations/{id}/events": {
            "get": _reads(
                _does(
                    "followGeneration",
                    "Its events, from the log and then live",
                    _query(
                        "after", after, "Go on behind this cursor; without it from the start. Pages know no `latest`."
                    ),
                    _query("limit", whole(1, 1000, 100), "Events of a page."),
                    _query("speed", speed, "As it happened, so many times as fast."),
                    *_LAST_EVENT_ID,
                    _200=_answer(
                        "Server-sent events, or with `Accept: application/json` a page of them. A gateway that is full "
                        "or stops sends `retry:` and ends: come back.",
                        {**_EVENT_STREAM, **_json("EventPage")},
                    ),
                    _204=_answer("It has ended, and there is nothing behind the cursor."),
                    **_errors_with_key("400", "404", "410", "429"),
                )
            )
        }
    }


def _several() -> Json:
    place = {"type": "string", "pattern": f"{ID['pattern'].rstrip('$')}(@({CURSOR['pattern'].strip('^$')}|latest))?$"}
    places = {"type": "array", "items": place, "minItems": 1, "maxItems": MAX_GENERATIONS}
    return {
        "/v1/events": {
            "get": _reads(
                _does(
                    "followSeveral",
                    "The events of many generations, each with its generation and cursor",
                    {**_query("generation", places, "Which."), "required": True},
                    *_LAST_EVENT_ID,
                    _200=_answer("Server-sent events, until all of them have ended.", _EVENT_STREAM),
                    _204=_answer("All of them have ended, and there is nothing behind the cursors."),
                    **_errors_with_key("400", "404", "410"),
                )
            )
        },
        "/v1/activity": {
            "get": _does(
                "watchActivity",
                "What happens to all of the caller's generations, without texts",
                _query("after", {"anyOf": [whole(0, 10**16 - 1, 0), {"const": "latest"}]}, "Go on behind this id."),
                *_LAST_EVENT_ID,
                _200=_answer("Server-sent events, each with the generation's summary. They do not end.", _EVENT_STREAM),
                **_errors_with_key("400"),
            )
        },
    }


def _overview() -> Json:
    return {
        "/v1/overview": {
            "get": _does(
                "getOverview",
                "How it goes: generations by status, the queue, the workers, the subscribers here",
                _200=_answer("Now.", _json("Overview")),
                **_errors_with_key(),
            )
        }
    }


def _chat() -> Json:
    whole_or_stream = {**_json("ChatCompletion"), **_EVENT_STREAM}
    return {
        "/v1/chat/completions": {
            "post": _does(
                "createChatCompletion",
                "As OpenAI's, streaming or not",
                _IDEMPOTENCY,
                _BARE,
                body="ChatCompletionRequest",
                _200=_answer("The completion, or its chunks and `[DONE]`.", whole_or_stream, "x-generation-id"),
                **_errors_with_key("400", "404", *_OF_THE_UPSTREAM),
            )
        },
        "/v1/chat/completions/{id}": {
            "get": _reads(
                _does(
                    "getChatCompletion",
                    "The stored completion, or its stream again",
                    _query("stream", {"enum": ["true", "false"]}, "`true`: as chunks, followed to the end."),
                    _query("after", CURSOR, "Of a stream: go on behind this cursor."),
                    _query("starting_after", CURSOR, "The same, as OpenAI spells it."),
                    _query("include_usage", {"enum": ["true", "false"]}, "Of a stream: with the usage chunk."),
                    _BARE,
                    _200=_answer("The completion so far, or its chunks.", whole_or_stream),
                    **_errors_with_key("400", "404", "410", *_OF_THE_UPSTREAM),
                )
            )
        },
    }


def _models() -> Json:
    listed, one = _answer("They.", _json("ModelList")), _answer("It.", _json("Model"))
    return {
        "/v1/models": {"get": _does("listModels", "The upstreams' models", _200=listed, **_errors_with_key())},
        "/v1/models/{id}": {"get": _does("getModel", "One of them", _200=one, **_errors_with_key("404"))},
    }


def _operation() -> Json:
    status = _json("Status")
    text: Json = {"text/plain": {"schema": STRING}, "application/openmetrics-text": {"schema": STRING}}
    return {
        "/healthz": {"get": _open(_does("alive", "Whether the process is there", _200=_answer("It is.", status)))},
        "/readyz": {
            "get": _open(
                _does(
                    "ready",
                    "Whether it should get traffic: Redis answers, and it is not being stopped",
                    _200=_answer("It should.", status),
                    _503=_answer("It should not; `reason` says why.", status),
                )
            )
        },
        "/metrics": {"get": _open(_does("metrics", "For Prometheus", _200=_answer("Metrics.", text)))},
        "/openapi.json": {
            "get": _open(
                _does(
                    "openapi",
                    "This",
                    _200=_answer("OpenAPI 3.1.", {"application/json": {"schema": {"type": "object"}}}),
                )
            )
        },
        "/docs": {
            "get": _open(_does("docs", "This, for people", _200=_answer("A page.", {"text/html": {"schema": STRING}})))
        },
    }

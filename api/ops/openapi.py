"""`/openapi.json`: the machine-readable description of the HTTP interface.

One test compares it with the routes, their parameters and their responses; another one runs schemathesis against a real
gateway. A new route is one entry in `_paths`: a summary, its parameters, its body, and its responses by status.
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
from api.ops.schemas import CURSOR, ERRORS, ID, SCHEMAS, STRING, ref, whole
from broker.events import STATUSES
from broker.version import __version__

Json = dict[str, Any]

_OF_THE_UPSTREAM = ("409", "413", "422", "429", "500", "502", "504")
_EVENT_STREAM: Json = {"text/event-stream": {"schema": ref("StreamEvent")}}


class OpenApi:
    """The handlers of `/openapi.json` and `/docs`."""

    def routes(self) -> list[Route]:
        return [Route("/openapi.json", self.json), Route("/docs", self.html)]

    async def json(self, _: Request) -> Response:
        return JSONResponse(document(), headers={"cache-control": "no-cache"})

    async def html(self, _: Request) -> Response:
        return Response(page(document()), headers=SECURITY, media_type="text/html")


@cache
def document() -> Json:
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
        "security": [{"key": []}, {}],
        "paths": {path: _with_id(path, item) for path, item in _paths().items()},
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
            "schemas": SCHEMAS,
        },
    }


def _with_id(path: str, item: Json) -> Json:
    if "{id}" not in path:
        return item
    schema = STRING if path.startswith("/v1/models") else ID
    return {"parameters": [{"name": "id", "in": "path", "required": True, "schema": schema}], **item}


def _paths() -> Json:
    return {
        **_generations(),
        **_generation(),
        **_events(),
        **_several(),
        **_overview(),
        **_chat(),
        **_models(),
        **_operation(),
    }


# --- the parts of an operation -------------------------------------------------------------------------------


def _does(
    name: str, summary: str, *parameters: Json, body: str = "", optional_body: bool = False, **more: Json
) -> Json:
    """Return an operation. `more`: its responses, `_200` and so on."""
    found: Json = {"operationId": name, "summary": summary}
    more |= _errors("403", "415") if body else _errors("403")
    if parameters:
        found["parameters"] = list(parameters)
    if body:
        found["requestBody"] = {"required": not optional_body, "content": _json(body)}
    found["responses"] = {status.removeprefix("_"): answer for status, answer in sorted(more.items())}
    return found


def _reads(operation: Json) -> Json:
    """Return an operation that also accepts a stream token."""
    return {**operation, "security": [{"key": []}, {"token": []}, {}]}


def _open(operation: Json) -> Json:
    """Return an operation that needs no key."""
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
    return {f"_{status}": _answer(ERRORS[status], _json("Error")) for status in sorted(statuses)}


def _errors_with_key(*statuses: str) -> Json:
    """Return the errors of an operation that may need a key: these statuses, 401 and 503."""
    return _errors("401", "503", *statuses)


_PAGE = (
    "A page of generations. It can hold fewer than `limit`, or none, while `has_more` is true: continue with the last "
    "id of the page, or repeat the request if it is empty."
)


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


_LAST_EVENT_ID = (
    _header("Last-Event-ID", STRING, "The last received `id:`. Takes precedence over `after`."),
    _query("lastEventId", STRING, "The same, as sent by EventSource polyfills. The header takes precedence."),
)
_BARE = _query(
    "bare", {"enum": ["true", "false"]}, "Streams only: send `data:` lines only, without ids and heartbeats."
)
_IDEMPOTENCY = _header(
    "Idempotency-Key",
    {"type": "string", "maxLength": 255},
    "A request with the same key and body returns the same generation.",
)
_LINKS: Json = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("getGeneration", "followGeneration", "cancelGeneration", "createToken", "getChatCompletion")
}

# --- the routes ----------------------------------------------------------------------------------------------


def _generations() -> Json:
    one = _json("Generation")
    accepted = _answer("The accepted generation.", one, "Location", "x-generation-id")
    return {
        "/v1/generations": {
            "post": _does(
                "createGeneration",
                "Enqueue a generation",
                _IDEMPOTENCY,
                body="GenerationRequest",
                _200=_answer(
                    "The generation that an earlier request with this Idempotency-Key created.",
                    one,
                    "Location",
                    "idempotent-replayed",
                ),
                _202={**accepted, "links": _LINKS},
                **_errors_with_key("400", "404", "413", "422", "429"),
            ),
            "get": _does(
                "listGenerations",
                "List the caller's generations, newest first, without texts",
                _query("status", {"enum": list(STATUSES)}, "Only generations with this status."),
                _query("limit", whole(1, 100, 20), "Page size."),
                _query("after", {"anyOf": [ID, {"const": ""}]}, "The last id of the previous page."),
                _200=_answer(_PAGE, _json("GenerationList")),
                **_errors_with_key("400", "404", "429"),
            ),
        },
    }


def _generation() -> Json:
    one = _json("Generation")
    return {
        "/v1/generations/{id}": {
            "get": _reads(
                _does(
                    "getGeneration",
                    "Get a generation, with its text so far",
                    _query("include", {"enum": ["request"]}, "Include the request body; not allowed with a token."),
                    _200=_answer("The generation.", one),
                    **_errors_with_key("400", "404", "410", "429"),
                )
            ),
            "delete": _does(
                "deleteGeneration",
                "Delete a generation; a running one is cancelled first, and its followers receive `gone`",
                _204=_answer("The generation was deleted."),
                **_errors_with_key("404", "410"),
            ),
        },
        "/v1/generations/{id}/cancel": {
            "post": _does(
                "cancelGeneration",
                "Cancel a generation at once; one that has ended does not change",
                _200=_answer("The generation after the cancellation.", one),
                **_errors_with_key("404", "410", "429"),
            )
        },
        "/v1/generations/{id}/token": {
            "post": _does(
                "createToken",
                "Create a token that reads this generation only, for EventSource",
                body="TokenRequest",
                optional_body=True,
                _200=_answer("The token, and the URL of the event stream with it.", _json("Token")),
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
                    "Follow a generation: its events from the log, then live",
                    _query(
                        "after", after, "Start after this cursor; default: the first event. `latest`: streams only."
                    ),
                    _query("limit", whole(1, 1000, 100), "Page size."),
                    _query("speed", speed, "Replay with the recorded timing, sped up by this factor."),
                    *_LAST_EVENT_ID,
                    _200=_answer(
                        "Server-sent events, or a page of them with `Accept: application/json`. A gateway that is full "
                        "or stopping sends `retry:` and ends the stream: reconnect.",
                        {**_EVENT_STREAM, **_json("EventPage")},
                    ),
                    _204=_answer("The generation has ended, and there are no events after the cursor."),
                    **_errors_with_key("400", "404", "410", "429"),
                )
            )
        }
    }


def _several() -> Json:
    start = {"type": "string", "pattern": f"{ID['pattern'].rstrip('$')}(@({CURSOR['pattern'].strip('^$')}|latest))?$"}
    starts = {"type": "array", "items": start, "minItems": 1, "maxItems": MAX_GENERATIONS}
    return {
        "/v1/events": {
            "get": _reads(
                _does(
                    "followSeveral",
                    "Follow several generations in one stream; each event names its generation and cursor",
                    {**_query("generation", starts, "An id, or `id@cursor` to start after that."), "required": True},
                    *_LAST_EVENT_ID,
                    _200=_answer("Server-sent events, until all generations have ended.", _EVENT_STREAM),
                    _204=_answer("All generations have ended, and there are no events after the cursors."),
                    **_errors_with_key("400", "404", "410"),
                )
            )
        },
        "/v1/activity": {
            "get": _does(
                "watchActivity",
                "Follow the status changes of all the caller's generations, without texts",
                _query("after", {"anyOf": [whole(0, 10**16 - 1, 0), {"const": "latest"}]}, "Start after this id."),
                *_LAST_EVENT_ID,
                _200=_answer("Server-sent events with generation summaries. The stream does not end.", _EVENT_STREAM),
                **_errors_with_key("400"),
            )
        },
    }


def _overview() -> Json:
    return {
        "/v1/overview": {
            "get": _does(
                "getOverview",
                "Get a status summary: generations by status, the queue, the workers, the subscribers here",
                _200=_answer("The current state.", _json("Overview")),
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
                "Create a chat completion, streamed or not, as OpenAI's API does",
                _IDEMPOTENCY,
                _BARE,
                body="ChatCompletionRequest",
                _200=_answer(
                    "The completion; with `stream`, its chunks and `[DONE]`.", whole_or_stream, "x-generation-id"
                ),
                **_errors_with_key("400", "404", *_OF_THE_UPSTREAM),
            )
        },
        "/v1/chat/completions/{id}": {
            "get": _reads(
                _does(
                    "getChatCompletion",
                    "Get a stored completion, or stream it again",
                    _query("stream", {"enum": ["true", "false"]}, "`true`: stream chunks until the completion ends."),
                    _query("after", CURSOR, "Streams only: start after this cursor."),
                    _query("starting_after", CURSOR, "The same, as OpenAI names it."),
                    _query("include_usage", {"enum": ["true", "false"]}, "Streams only: send the usage chunk."),
                    _BARE,
                    _200=_answer("The completion so far; with `stream`, its chunks.", whole_or_stream),
                    **_errors_with_key("400", "404", "410", *_OF_THE_UPSTREAM),
                )
            )
        },
    }


def _models() -> Json:
    listed, one = _answer("The models.", _json("ModelList")), _answer("The model.", _json("Model"))
    return {
        "/v1/models": {
            "get": _does("listModels", "List the models of all upstreams", _200=listed, **_errors_with_key())
        },
        "/v1/models/{id}": {"get": _does("getModel", "Get a model", _200=one, **_errors_with_key("404"))},
    }


def _operation() -> Json:
    status = _json("Status")
    text: Json = {"text/plain": {"schema": STRING}, "application/openmetrics-text": {"schema": STRING}}
    return {
        "/healthz": {"get": _open(_does("alive", "Liveness probe", _200=_answer("The process is running.", status)))},
        "/readyz": {
            "get": _open(
                _does(
                    "ready",
                    "Readiness probe: Redis is reachable and the gateway is not stopping",
                    _200=_answer("The gateway can receive traffic.", status),
                    _503=_answer("The gateway must not receive traffic; `reason` says why.", status),
                )
            )
        },
        "/metrics": {"get": _open(_does("metrics", "Get metrics for Prometheus", _200=_answer("The metrics.", text)))},
        "/openapi.json": {
            "get": _open(
                _does(
                    "openapi",
                    "Get this description of the interface",
                    _200=_answer("An OpenAPI 3.1 document.", {"application/json": {"schema": {"type": "object"}}}),
                )
            )
        },
        "/docs": {
            "get": _open(
                _does(
                    "docs",
                    "Get this description as a page",
                    _200=_answer("The page.", {"text/html": {"schema": STRING}}),
                )
            )
        },
    }

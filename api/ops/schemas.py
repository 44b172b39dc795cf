"""The schemas in `/openapi.json`, in JSON Schema: requests and responses; and the descriptions of its errors.

Responses that are msgspec structs are described by their own schema.
"""

from __future__ import annotations

from typing import Any

from msgspec.json import schema_components

from api.errors import Error
from api.ops.health import Status
from api.ops.models import ModelList
from api.ops.overview import Overview
from broker.auth.stream_tokens import LONGEST
from broker.events import NAMES, STATUSES
from broker.request import MAX_TTL_SECONDS

Json = dict[str, Any]

STRING: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
OBJECT: Json = {"type": "object"}
CURSOR: Json = {"type": "string", "pattern": r"^[0-9]{1,16}-[0-9]{1,10}$", "examples": ["1850812345678901-7"]}
ID: Json = {"type": "string", "pattern": "^gen_[0-9a-z]{34}$"}

ERRORS = {
    "400": "The request is invalid; `param` names the invalid part.",
    "401": "The API key or token is missing, unknown or expired.",
    "403": "Only without API keys: the request comes from another site's page, or its `Host` is not the gateway's.",
    "404": "The resource does not exist, or belongs to another tenant.",
    "409": "The generation was cancelled.",
    "410": "The generation was deleted, or its retention time is over.",
    "413": "The body is longer than TOKENCAST_MAX_BODY.",
    "415": "The body is compressed, or its Content-Type is not JSON.",
    "422": "The Idempotency-Key was used with another body, or the upstream refused the request.",
    "429": "A limit of the caller or of the upstream is reached; `Retry-After` says when to try again.",
    "500": "Internal error, or every attempt of the generation crashed.",
    "502": "The upstream failed, or refused the gateway's credentials.",
    "503": "Redis is unavailable, or the gateway is full or being restarted; `Retry-After` says when to try again.",
    "504": "The upstream did not answer in time.",
}
"""Descriptions of the error responses, by status."""


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def orelse_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def whole(least: int, most: int, default: int) -> Json:
    return {"type": "integer", "minimum": least, "maximum": most, "default": default}


def record(properties: Json, *, optional: tuple[str, ...] = (), **more: Any) -> Json:
    """Return an object schema. All properties but the optional ones are required; further ones are allowed."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {}), **more}


def listed(name: str) -> Json:
    return record(
        {"object": {"const": "list"}, "data": {"type": "array", "items": ref(name)}, "has_more": {"type": "boolean"}}
    )


_METADATA: Json = {
    "type": "object",
    "maxProperties": 16,
    "propertyNames": {"maxLength": 64},
    "additionalProperties": {"type": "string", "maxLength": 512},
}
_MESSAGE = record(
    {
        "role": {"type": "string", "minLength": 1, "examples": ["system", "user", "assistant", "tool"]},
        "content": {"anyOf": [STRING, {"type": "array"}, OBJECT, {"type": "null"}]},
    },
    optional=("content",),
)
_COMPLETION_REQUEST: Json = {
    "model": {"type": "string", "minLength": 1, "maxLength": 256},
    "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
    "n": orelse_null(whole(1, 128, 1)),
    "stream_options": orelse_null(
        record({"include_usage": orelse_null({"type": "boolean"})}, optional=("include_usage",))
    ),
    "metadata": orelse_null(_METADATA),
    "on_upstream_error": {
        "enum": ["fail", "restart", None],
        "description": "Upstream errors after the first token: fail the generation, or restart it with a `reset`.",
    },
    "ttl_seconds": orelse_null({"type": "number", "minimum": 1, "maximum": MAX_TTL_SECONDS}),
}
_OPTIONAL = tuple(name for name in _COMPLETION_REQUEST if name not in ("model", "messages"))
_EVERYTHING_ELSE = "All other chat.completions parameters are passed on to the upstream unchanged."

_SUMMARY: Json = {
    "id": ID,
    "object": {"const": "generation"},
    "status": {"enum": list(STATUSES)},
    "model": STRING,
    "created_at": {"type": "number", "description": "Unix seconds, as all times in this API."},
    "started_at": orelse_null(NUMBER),
    "first_token_at": orelse_null(NUMBER),
    "ended_at": orelse_null(NUMBER),
    "attempt": {"type": "integer", "minimum": 0, "description": "Number of the attempt, from 1; 0 before the first."},
    "cursor": {**CURSOR, "description": "Cursor of the newest event."},
    "usage": orelse_null(OBJECT),
    "error": orelse_null(OBJECT),
    "metadata": _METADATA,
}
_CHOICE = record({"index": {"type": "integer"}, "message": OBJECT, "finish_reason": orelse_null(STRING)})

SCHEMAS: Json = {
    "GenerationRequest": record(_COMPLETION_REQUEST, optional=_OPTIONAL, description=_EVERYTHING_ELSE),
    "ChatCompletionRequest": record(
        {**_COMPLETION_REQUEST, "stream": orelse_null({"type": "boolean"})},
        optional=(*_OPTIONAL, "stream"),
        description=_EVERYTHING_ELSE,
    ),
    "GenerationSummary": record(_SUMMARY),
    "Generation": record(
        {
            **_SUMMARY,
            "text": {"type": "string", "description": "The content of choice 0 so far."},
            "choices": {"type": "array", "items": _CHOICE, "description": "The merged messages so far."},
            "request": {
                **orelse_null({"type": "object"}),
                "description": "The request body, if `include` names it; null for a cancelled generation whose "
                "request was too long to be kept.",
            },
        },
        optional=("request",),
    ),
    "GenerationList": listed("GenerationSummary"),
    "Event": record(
        {
            "id": CURSOR,
            "event": {"type": "string", "examples": sorted(set(NAMES.values()))},
            "at": {"type": "integer", "description": "Milliseconds since the start of the attempt."},
            "data": {},
        }
    ),
    "EventPage": listed("Event"),
    "StreamEvent": record(
        {
            "id": {"type": "string", "description": "The cursor to send as `Last-Event-ID` when reconnecting."},
            "event": {"type": "string", "examples": sorted(set(NAMES.values())), "description": "Absent in chat."},
            "data": {"type": "string", "description": "JSON on one line; `[DONE]` at the end of a chat stream."},
            "retry": {"type": "integer", "description": "Milliseconds to wait before reconnecting."},
        },
        optional=("id", "event", "data", "retry"),
        description="One event of a stream (WHATWG HTML §9.2).",
    ),
    "TokenRequest": record(
        {"ttl_seconds": orelse_null({"type": "number", "minimum": 1, "maximum": LONGEST})}, optional=("ttl_seconds",)
    ),
    "Token": record({"token": STRING, "expires_at": NUMBER, "events_url": STRING}),
    "ChatCompletion": record(
        {
            "id": ID,
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": STRING,
            "choices": {"type": "array", "items": _CHOICE},
            "usage": orelse_null(OBJECT),
        }
    ),
    **schema_components([Error, ModelList, Overview, Status], ref_template="#/components/schemas/{name}")[1],
}  # fmt: skip

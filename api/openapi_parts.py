"""Building blocks of `/openapi.json`, with which dialects and other routes describe themselves."""

from __future__ import annotations

from typing import Any, get_args

from msgspec.json import schema, schema_components

from api import openapi_examples as examples
from broker import records
from broker.events import NAMES
from broker.request.options import MAX_TTL_SECONDS, Options, Policy

Json = dict[str, Any]

STRING: Json = {"type": "string"}
OBJECT: Json = {"type": "object"}
CURSOR: Json = schema(records.CursorText)
ID: Json = schema(records.GenerationId)

ERRORS = {
    "400": "The request is invalid; `param` names the invalid part.",
    "401": "The API key or token is missing, unknown or expired.",
    "403": "The key's role does not allow it; without API keys: the request comes from another site's page, or its "
    "`Host` is not the gateway's.",
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


def schemas_of(*records: Any) -> Json:
    """Return the schemas of records, by the names of their classes."""
    return schema_components(records, ref_template="#/components/schemas/{name}")[1]


# --- operations ----------------------------------------------------------------------------------------------


def operation(
    name: str,
    summary: str,
    *parameters: Json,
    body: str = "",
    optional_body: bool = False,
    examples: Json | None = None,
    **more: Json,
) -> Json:
    """Return an operation. `examples`: of its body. `more`: its responses, `_200` and so on."""
    found: Json = {"operationId": name, "summary": summary}
    more |= errors("403", "415") if body else errors("403")
    if parameters:
        found["parameters"] = list(parameters)
    if body:
        content = json_of(body)
        if examples:
            content["application/json"]["examples"] = examples
        found["requestBody"] = {"required": not optional_body, "content": content}
    found["responses"] = {status.removeprefix("_"): answer for status, answer in sorted(more.items())}
    return found


def with_token(operation: Json) -> Json:
    """Return an operation that also accepts a stream token."""
    return {**operation, "security": [{"key": []}, {"token": []}, {}]}


def public(operation: Json) -> Json:
    """Return an operation that needs no key."""
    return {**operation, "security": []}


def json_of(schema: str, example: Json | None = None) -> Json:
    """Return a JSON content. Without an example of its own it has that of the schema."""
    return {"application/json": {"schema": ref(schema), **({"example": example} if example else {})}}


def stream_of(example: str) -> Json:
    """Return the content of an event stream, with the beginning of one."""
    return {"text/event-stream": {"schema": ref("StreamEvent"), "example": example}}


def with_examples(schemas: Json, **of: Json) -> Json:
    """Return schemas with an example for each of those that are named."""
    return {name: {**shape, "examples": [of[name]]} if name in of else shape for name, shape in schemas.items()}


def answer(description: str, content: Json | None = None, *headers: str) -> Json:
    found: Json = {"description": description}
    if headers:
        found["headers"] = {name: {"schema": STRING} for name in headers}
    if content is not None:
        found["content"] = content
    return found


def errors(*statuses: str) -> Json:
    return {
        f"_{status}": answer(ERRORS[status], json_of("Error", examples.error(status))) for status in sorted(statuses)
    }


def errors_with_key(*statuses: str) -> Json:
    """Return the errors of an operation that may need a key: these statuses, 401 and 503."""
    return errors("401", "503", *statuses)


def query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


# --- shared by dialects --------------------------------------------------------------------------------------

UPSTREAM_ERRORS = ("409", "413", "422", "429", "500", "502", "504")
"""Statuses of an operation that waits for the upstream."""
LAST_EVENT_ID = (
    header("Last-Event-ID", STRING, "The last received `id:`. Takes precedence over `after`."),
    query("lastEventId", STRING, "The same, as sent by EventSource polyfills. The header takes precedence."),
)
IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    {"type": "string", "maxLength": 255},
    "A request with the same key and body returns the same generation.",
)

OF_TENANT = query("tenant", STRING, "For operators: only of this tenant. For others: their own.")
OF_ONE_TENANT = query("tenant", STRING, "For operators: the tenant; by default their own. For others: their own.")

_MESSAGE = record(
    {
        "role": {"type": "string", "minLength": 1, "examples": ["system", "user", "assistant", "tool"]},
        "content": {"anyOf": [STRING, {"type": "array"}, OBJECT, {"type": "null"}]},
    },
    optional=("content",),
)
COMPLETION_REQUEST: Json = {
    "model": {"type": "string", "minLength": 1, "maxLength": 256},
    "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
    "n": orelse_null(whole(1, 128, 1)),
    "stream_options": orelse_null(
        record({"include_usage": orelse_null({"type": "boolean"})}, optional=("include_usage",))
    ),
    "metadata": schema(records.Metadata | None),
    "on_upstream_error": {
        "enum": [*get_args(Policy), None],
        "description": "Upstream errors after the first token: fail the generation, restart it with a `reset`, or "
        "continue its text with another call.",
    },
    "ttl_seconds": orelse_null({"type": "number", "minimum": 1, "maximum": MAX_TTL_SECONDS}),
    "tokencast": orelse_null(ref("Options")),
}
OPTIONAL = tuple(name for name in COMPLETION_REQUEST if name not in ("model", "messages"))
OTHER_PARAMETERS = "All other chat.completions parameters are passed on to the upstream unchanged."

SHARED_SCHEMAS: Json = {
    **schemas_of(records.Choice, Options),
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
}

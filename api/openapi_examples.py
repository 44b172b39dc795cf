"""Examples in `/openapi.json`. The tests send each request to a gateway, and compare the responses with these."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

ID = "gen_03qcpc7p2rbyx1e4tjf557khzqp55xrp0j"
"""An id of the year 2100, which no gateway knows: it is answered with 404, also by one that has just lost its data."""
TEXT = "The GIL is a lock that lets one thread run Python bytecode at a time."
CURSOR = "1838836292739219-18"
USAGE = {"prompt_tokens": 8, "completion_tokens": 17, "total_tokens": 25}
MESSAGE = {"role": "assistant", "content": TEXT}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
_BODY = {"model": "gabforge-coder", "messages": [{"role": "user", "content": "Explain the GIL in CPython."}]}

# --- responses -------------------------------------------------------------------------------------------------

_NEW: Json = {
    "id": ID,
    "object": "generation",
    "status": "queued",
    "model": "gabforge-coder",
    "created_at": 1795738567.088,
    "started_at": None,
    "first_token_at": None,
    "ended_at": None,
    "attempt": 0,
    "cursor": "0-1",
    "usage": None,
    "error": None,
    "metadata": {"ticket": "4711"},
    "priority": 3,
    "run_at": None,
    "group": "nightly",
    "retry_of": None,
    "upstream": None,
    "queue": {"position": None, "reason": "queued", "retry_at": None, "upstreams": ["default"]},
    "prompt": "Explain the GIL in CPython.",
}
_END = {
    "status": "completed",
    "started_at": 1795738567.165,
    "first_token_at": 1795738567.166,
    "ended_at": 1795738568.663,
    "attempt": 1,
    "cursor": CURSOR,
    "usage": USAGE,
    "upstream": "gpu-1",
    "queue": None,
}
SUMMARY: Json = {**_NEW, **_END}
_ALONE: Json = {"lease": None, "reset_reason": None}
ACCEPTED: Json = {**_NEW, **_ALONE, "text": "", "choices": []}
GENERATION: Json = {**SUMMARY, **_ALONE, "text": TEXT, "choices": [CHOICE]}
CANCELLED: Json = {**ACCEPTED, "status": "cancelled", "cursor": "1-0", "ended_at": 1795738567.901, "queue": None}
RETRIED: Json = {**ACCEPTED, "retry_of": "gen_01m8d5q27fbygcvt9p6w1kqk2s4d3n0e8h"}
GENERATION_LIST: Json = {"object": "list", "data": [SUMMARY], "has_more": False, "last_id": ID}
_UNKNOWN_MODEL = {
    "message": "The model `gpt-unknown` does not exist or is not served here.",
    "type": "invalid_request_error",
    "param": "model",
    "code": "model_not_found",
}
BATCH: Json = {"object": "list", "data": [_NEW, {"error": {**_UNKNOWN_MODEL, "status": 404}}]}
RETRY_RESULT: Json = {
    "matched": 1,
    "retried": 1,
    "data": [{**_NEW, "retry_of": RETRIED["retry_of"]}],
    "has_more": False,
}
CANCEL_RESULT: Json = {
    "matched": 1,
    "cancelled": 1,
    "data": [{**_NEW, "status": "cancelled", "cursor": "1-0", "ended_at": 1795738567.901, "queue": None}],
    "has_more": False,
}
DELETE_RESULT: Json = {"matched": 1, "deleted": 1, "data": [SUMMARY], "has_more": False}
GROUP: Json = {
    "object": "group",
    "name": "nightly",
    "counts": {"queued": 0, "in_progress": 0, "completed": 1, "failed": 0, "cancelled": 0},
    "usage": USAGE,
    "created_at": 1795738567.088,
    "ended_at": 1795738568.663,
}
_CHUNK = {
    "id": "chatcmpl-ac2d3d000001",
    "object": "chat.completion.chunk",
    "created": 1795738567,
    "model": "gabforge-coder",
    "choices": [{"index": 0, "delta": {"content": "The"}, "finish_reason": None}],
}
_CREATED = {"model": "gabforge-coder", "created_at": 1795738567.088}
_EVENTS = (
    ("0-1", "created", _CREATED),
    ("1838836292739219-0", "started", {"attempt": 1, "upstream": "gpu-1"}),
    ("1838836292739219-1", "chunk", _CHUNK),
    (CURSOR, "completed", {"finish_reason": "stop", "usage": USAGE}),
)
EVENT_PAGE: Json = {
    "object": "list",
    "data": [
        {"id": cursor, "event": name, "at": at, "data": data}
        for (cursor, name, data), at in zip(_EVENTS, (0, 0, 37, 1498), strict=True)
    ],
    "has_more": False,
}
TOKEN: Json = {
    "token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9…",
    "expires_at": 1795739171.377,
    "events_url": f"/v1/generations/{ID}/events?token=eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9…",
}
DELIVERIES: Json = {
    "object": "list",
    "data": [
        {
            "n": 1,
            "webhook_id": f"msg_{ID}_completed",
            "type": "generation.completed",
            "at": 1795738568.7,
            "seconds": 0.082,
            "status": 503,
            "error": "refused",
        }
    ],
    "retry_at": 1795738573.8,
}
CHAT_COMPLETION: Json = {
    "id": ID,
    "object": "chat.completion",
    "created": 1795738567,
    "model": "gabforge-coder",
    "choices": [{**CHOICE, "logprobs": None}],
    "usage": USAGE,
}
OVERVIEW: Json = {
    "object": "overview",
    "at": 1795738571.447,
    "generations": {"queued": 2, "in_progress": 4, "completed": 118, "failed": 1, "cancelled": 0},
    "queue": {"depth": 2, "oldest_seconds": 1.2},
    "workers": [{"slots": 100, "running": 4}],
    "subscribers": {"total": 12, "generations": {ID: 12}},
}
QUEUE: Json = {
    "object": "queue",
    "depth": 2,
    "by_priority": {"3": 2},
    "by_reason": {"upstream_limit": 2},
    "levels": [{"upstreams": ["gpu-1"], "priority": 3, "waiting": 2, "reason": "upstream_limit", "retry_at": None}],
    "paused": ["tenant reports"],
}
# Not the name of a real upstream: a program that sends the examples would change its limits.
UPSTREAM: Json = {
    "name": "gpu-1",
    "max_concurrency": 32,
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "told_limits": [],
    "learned_concurrency": None,
    "in_flight": 4,
    "waiting": 0,
    "refused": 0,
    "circuit": "closed",
    "retry_at": None,
    "paused": False,
}
UPSTREAMS: Json = {"object": "list", "data": [UPSTREAM]}
_FIRST_TOKEN: Json = {"count": 1, "p50": 0.083, "p95": 0.083}
_FIGURES: Json = {
    "created": 1,
    "started": 1,
    "completed": 0,
    "failed": 1,
    "cancelled": 0,
    "tokens": 18,
    "tokens_per_second": 0.4,
    "first_token": _FIRST_TOKEN,
    "queue_depth": 2,
}
HISTORY: Json = {
    "object": "history",
    "data": [{"at": 1795738560.0, "seconds": 45.0, **_FIGURES}],
    "total": _FIGURES,
    "errors": [
        {
            "code": "upstream_timeout",
            "model": "gabforge-coder",
            "upstream": "default",
            "failed": 1,
            "returned": 0,
            "last_at": 1795738588.6,
            "sample": ID,
        }
    ],
    "models": ["gabforge-coder"],
    "upstreams": ["default"],
}
WORKER: Json = {
    "id": "worker-7f3a9c",
    "state": "running",
    "seen_at": 1795738568.2,
    "host": "node-1",
    "pid": 17,
    "version": "0.3.0",
    "slots": 100,
    "running": 1,
    "upstreams": ["default"],
    "started_at": 1795730000.0,
    "generations": [
        {
            "id": ID,
            "tenant": "anna",
            "model": "gabforge-coder",
            "upstream": "default",
            "claimed_at": 1795738567.165,
        }
    ],
}
WORKERS: Json = {"object": "list", "data": [WORKER]}
_GATEWAY = "node-1-23"
SUBSCRIBERS: Json = {
    "object": "list",
    "data": [
        {
            "gateway": _GATEWAY,
            "dialect": "native",
            "since": 1795738567.2,
            "cursor": CURSOR,
            "lag_events": 0,
            "unread_bytes": 0,
            "stalled": False,
        }
    ],
    "gateways": [{"gateway": _GATEWAY, "subscribers": 1, "at": 1795738568.2}],
}
KEYS: Json = {
    "object": "list",
    "data": [
        {
            "key": "5e884898",
            "tenant": "anna",
            "role": "operator",
            "expires_at": 1798761600.0,
            "last_used_at": 1795738560.0,
        }
    ],
}
CALLER: Json = {"object": "caller", "tenant": "anna", "role": "operator", "tenants": ["anna", "ben"]}
MODEL: Json = {"id": "gabforge-coder", "object": "model", "created": 0, "owned_by": "gpu-1"}
MODELS: Json = {"object": "list", "data": [MODEL]}
READY: Json = {"status": "ok"}
NOT_READY: Json = {"status": "unavailable", "reason": "queue: Redis does not answer in time."}


_INVALID, _SERVER = "invalid_request_error", "server_error"
_ERRORS: dict[str, tuple[str, str, str | None, str]] = {
    "400": ("`messages` is required.", _INVALID, "messages", "missing_required_parameter"),
    "401": ("The API key is missing or unknown.", "authentication_error", None, "invalid_api_key"),
    "403": ("This API key can only read.", _INVALID, None, "read_only_key"),
    "404": ("No such generation.", _INVALID, "id", "generation_not_found"),
    "409": ("The generation was cancelled.", _INVALID, None, "generation_cancelled"),
    "410": ("The generation was deleted or has expired.", _INVALID, "id", "generation_gone"),
    "413": ("The request body is larger than TOKENCAST_MAX_BODY allows.", _INVALID, None, "request_too_large"),
    "415": (
        "The body must be JSON, with `Content-Type: application/json`.",
        _INVALID,
        "content-type",
        "unsupported_media_type",
    ),
    "422": (
        "This Idempotency-Key was used with a different body.",
        _INVALID,
        "idempotency-key",
        "idempotency_conflict",
    ),
    "429": ("Subscriber limit reached: 100 streams are already open.", "rate_limit_error", None, "rate_limit_exceeded"),
    "500": ("The worker of this generation was lost 3 times.", _SERVER, None, "attempts_exhausted"),
    "502": ("The upstream rejected the broker's credentials.", _SERVER, None, "upstream_auth"),
    "503": ("Redis does not answer.", _SERVER, None, "storage_unavailable"),
    "504": ("The upstream sent no token for 120 s.", _SERVER, None, "upstream_timeout"),
}


def error(status: str) -> Json:
    """Return an example of an error response with this status."""
    return {"error": dict(zip(("message", "type", "param", "code"), _ERRORS[status], strict=True))}


# --- event streams ---------------------------------------------------------------------------------------------


def _frame(data: Any, name: str = "", cursor: str = "") -> str:
    head = (f"id: {cursor}\n" if cursor else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data, separators=(',', ':'))}\n\n"


EVENTS = "".join(_frame(data, name, cursor) for cursor, name, data in _EVENTS)
SEVERAL = "".join(_frame({"generation": ID, "cursor": cursor, "data": data}, name) for cursor, name, data in _EVENTS)
ACTIVITY = _frame(_NEW, "created", "1795738567113") + _frame(SUMMARY, "completed", "1795738568690")
CHUNKS = _frame(_CHUNK, cursor="1838836292739219-1") + _frame("[DONE]")

# --- requests --------------------------------------------------------------------------------------------------


def _named(**examples: tuple[str, Any]) -> Json:
    return {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}


COMPLETION = _named(
    minimal=("A prompt", _BODY),
    options=(
        "With options of the queue",
        {
            **_BODY,
            "temperature": 0.2,
            "metadata": {"ticket": "4711"},
            "tokencast": {"priority": 1, "queue_timeout": 600, "group": "nightly", "on_upstream_error": "restart"},
        },
    ),
    scheduled=("Ten minutes from now", {**_BODY, "tokencast": {"delay_seconds": 600}}),
)
CHAT = _named(
    minimal=("A whole completion", _BODY),
    stream=("A stream", {**_BODY, "stream": True, "stream_options": {"include_usage": True}}),
)
ITEMS = _named(
    two=(
        "Two items of a group",
        {"generations": [{**_BODY, "tokencast": {"group": "nightly"}}, {**_BODY, "model": "gpt-unknown"}]},
    )
)
LINES = _named(two=("Two lines", f"{json.dumps(_BODY)}\n{json.dumps(_BODY)}\n"))
RETRY = _named(
    dry_run=("Only find them", {"status": "failed", "code": "upstream_unavailable", "dry_run": True}),
    group=("The failed ones of a group", {"status": "failed", "group": "nightly", "limit": 100}),
)
CANCEL = _named(
    dry_run=("Only find them", {"status": "queued", "group": "nightly", "dry_run": True}),
    group=("Those of a group", {"group": "nightly"}),
)
DELETE = _named(
    dry_run=("Only find them", {"status": "completed", "until": 1795738567.0, "dry_run": True}),
    failed=("Failed ones of a group", {"status": "failed", "group": "nightly"}),
)
TOKEN_REQUEST = _named(ten_minutes=("For ten minutes", {"ttl_seconds": 600}))
PAUSE = _named(tenant=("A tenant", {"tenant": "reports"}))
UPSTREAM_PATCH = _named(limit=("At most 32 calls at once", {"max_concurrency": 32}))

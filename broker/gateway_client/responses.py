"""Checks of a gateway's responses. A response without the fields of its record is from another service."""

from __future__ import annotations

from typing import Any

import msgspec

from broker import records


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


class _Level(msgspec.Struct):
    upstreams: list[str]
    priority: int
    waiting: int
    reason: str
    retry_at: float | None


class _Queue(msgspec.Struct):
    depth: int
    by_priority: dict[str, int]
    by_reason: dict[str, int]
    levels: list[_Level]
    paused: list[str]


class _Upstream(msgspec.Struct):
    name: str
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    learned_concurrency: int | None
    in_flight: int
    waiting: int
    circuit: str
    retry_at: float | None
    paused: bool


class _UpstreamList(msgspec.Struct):
    data: list[_Upstream]


def check_answer(method: str, path: str, answer: Any) -> dict[str, Any]:
    """Return a response unchanged. Raises ValueError if it lacks a field of its record."""
    msgspec.convert(answer, _kind(method, path))
    return answer


_KINDS: dict[str, Any] = {
    "/v1/models": _ModelList,
    "/v1/queue": _Queue,
    "/v1/queue/pause": _Queue,
    "/v1/queue/resume": _Queue,
    "/v1/upstreams": _UpstreamList,
    "/v1/generations/batch": records.GenerationBatch,
    "/v1/generations/retry": records.RetryResult,
    "/v1/generations/cancel": records.CancelResult,
    "/v1/generations/delete": records.DeleteResult,
}


def _kind(method: str, path: str) -> Any:
    if path in _KINDS:
        return _KINDS[path]
    if path.startswith("/v1/upstreams/"):
        return _Upstream
    if not path.startswith("/v1/generations"):
        return dict[str, Any]
    if path.endswith("/token"):
        return records.Token
    return records.GenerationList if (method, path) == ("GET", "/v1/generations") else records.GenerationSummary

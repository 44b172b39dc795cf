"""The parts of a gateway's answers that the command line reads. What has none of them is another service's."""

from __future__ import annotations

from typing import Any

import msgspec


class Failure(msgspec.Struct):
    message: str


class Generation(msgspec.Struct):
    """As lists have it: without text."""

    id: str
    status: str
    model: str
    created_at: float
    started_at: float | None
    first_token_at: float | None
    ended_at: float | None
    attempt: int
    cursor: str
    usage: dict[str, Any] | None
    error: Failure | None
    metadata: dict[str, str]


class Page(msgspec.Struct):
    data: list[Generation]
    has_more: bool


class Model(msgspec.Struct):
    id: str


class Models(msgspec.Struct):
    data: list[Model]


class Token(msgspec.Struct):
    token: str
    expires_at: float
    events_url: str


def check_answer(method: str, path: str, answer: Any) -> dict[str, Any]:
    """The answer to a request, as it is. ValueError where it lacks what the command line reads."""
    msgspec.convert(answer, _kind(method, path))
    return answer


def _kind(method: str, path: str) -> Any:
    if path == "/v1/models":
        return Models
    if not path.startswith("/v1/generations"):
        return dict[str, Any]
    if path.endswith("/token"):
        return Token
    return Page if (method, path) == ("GET", "/v1/generations") else Generation

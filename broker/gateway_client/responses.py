"""The parts of a gateway's responses that the command line reads. A response without them is from another service."""

from __future__ import annotations

from typing import Any

import msgspec


class FailureResponse(msgspec.Struct):
    """The error of a failed generation."""

    message: str


class GenerationResponse(msgspec.Struct):
    """A generation as in lists: without text."""

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
    error: FailureResponse | None
    metadata: dict[str, str]


class PageResponse(msgspec.Struct):
    """A page of a list."""

    data: list[GenerationResponse]
    has_more: bool


class ModelResponse(msgspec.Struct):
    """A model."""

    id: str


class ModelListResponse(msgspec.Struct):
    """The list of models."""

    data: list[ModelResponse]


class TokenResponse(msgspec.Struct):
    """A stream token."""

    token: str
    expires_at: float
    events_url: str


def check_answer(method: str, path: str, answer: Any) -> dict[str, Any]:
    """Return a response unchanged. Raises ValueError if it lacks a field that the command line reads."""
    msgspec.convert(answer, _kind(method, path))
    return answer


def _kind(method: str, path: str) -> Any:
    if path == "/v1/models":
        return ModelListResponse
    if not path.startswith("/v1/generations"):
        return dict[str, Any]
    if path.endswith("/token"):
        return TokenResponse
    return PageResponse if (method, path) == ("GET", "/v1/generations") else GenerationResponse

"""Checks of a gateway's responses. A response without the fields of its record is from another service."""

from __future__ import annotations

from typing import Any

import msgspec

from broker import records


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


def check_answer(method: str, path: str, answer: Any) -> dict[str, Any]:
    """Return a response unchanged. Raises ValueError if it lacks a field of its record."""
    msgspec.convert(answer, _kind(method, path))
    return answer


def _kind(method: str, path: str) -> Any:
    if path == "/v1/models":
        return _ModelList
    if not path.startswith("/v1/generations"):
        return dict[str, Any]
    if path.endswith("/token"):
        return records.Token
    return records.GenerationList if (method, path) == ("GET", "/v1/generations") else records.GenerationSummary

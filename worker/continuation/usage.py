"""Usage of several calls that made one completion."""

from __future__ import annotations

from typing import Any, cast

Json = dict[str, Any]


def estimate(prompt_tokens: int, completion_tokens: int) -> Json:
    """Return the usage of a call that reported none."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "estimated": True,
    }


def total(first: Json, second: Json) -> Json:
    """Add two usages: numbers are added, also within objects. The sum is estimated if one of them is."""
    added: Json = {**first, **second}
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if isinstance(one, bool) or isinstance(other, bool):
            added[name] = bool(one) or bool(other)
        elif isinstance(one, int | float) and isinstance(other, int | float):
            added[name] = one + other
        elif isinstance(one, dict) and isinstance(other, dict):
            added[name] = total(cast(Json, one), cast(Json, other))
        elif other is None:
            added[name] = one
    return added

"""Normalizes the choices of a chunk to the form that readers expect."""

from __future__ import annotations

import json
from typing import Any, cast

from broker.completion.fold import finish_reason

Json = dict[str, Any]
INDEX_LIMIT = 1024  # exclusive limit of a choice's index; requests may ask for 128 choices


def normalize_choices(fields: Json, *, streamed: bool) -> tuple[list[Json], bool]:
    """Return the normalized choices of a chunk, and whether any of their text came as a complete message.

    Each choice has an object as its `delta`, which is empty if the choice had none (Azure's filter result for earlier
    text), and an index: its own, otherwise its position in the list. A choice that already has this form is returned as
    the same object. `streamed`: earlier chunks had text in deltas; a message then remains a message, and merging
    compares it with that text.
    """
    listed = [one for one in _as_list(fields.get("choices")) if one is not None]
    outer = finish_reason(fields.get("finish_reason"))
    made = [_normalize_choice(choice, place, outer, streamed) for place, choice in enumerate(listed)]
    return [choice for choice, _ in made], any(whole for _, whole in made)


def _as_list(value: object) -> list[Json | None]:
    """Return the choices of a list, of a single choice outside a list, or of an object keyed by number."""
    if isinstance(value, dict):
        fields = cast(Json, value)
        numbered = [one for key, one in fields.items() if key.isdigit()]
        value = numbered if numbered and len(numbered) == len(fields) else [fields]
    return [_as_object(one) for one in cast("list[object]", value)] if isinstance(value, list) else []


def _as_object(choice: object) -> Json | None:
    if isinstance(choice, str):
        return {"delta": {"content": choice}}
    return cast(Json, choice) if isinstance(choice, dict) else None


def _normalize_choice(choice: Json, place: int, outer: str | None, streamed: bool) -> tuple[Json, bool]:
    delta, whole = _delta(choice, streamed)
    if delta is not choice.get("delta"):
        dropped = "message" if whole else None
        choice = {**{key: value for key, value in choice.items() if key != dropped}, "delta": delta}
    index = _index(choice.get("index"), place)
    if index is not choice.get("index"):
        choice = {**choice, "index": index}
    if finish_reason(choice.get("finish_reason")) is None:
        reason = finish_reason(choice.get("finishReason")) or finish_reason(delta.get("finish_reason")) or outer
        if reason is not None:
            choice = {**choice, "finish_reason": reason}
    return choice, whole


def _delta(choice: Json, streamed: bool) -> tuple[Json, bool]:
    """Return the delta of a choice, and whether it was made from a complete message."""
    given, message = choice.get("delta"), choice.get("message")
    if isinstance(given, list):
        objects = [cast(Json, one) for one in cast("list[object]", given) if isinstance(one, dict)]
        given = objects[0] if objects else None
    if isinstance(given, str):
        given = {"content": given}
    if isinstance(given, dict) and (message is None or given.keys() - _NAMES):
        return _normalize_delta(_with_text(cast(Json, given), choice)), False
    if isinstance(message, str):
        message = {"content": message}
    if isinstance(message, dict) and message and not streamed:
        return _normalize_delta(cast(Json, message)), True
    return _with_text({}, choice), False


def _with_text(delta: Json, choice: Json) -> Json:
    """Add text that is next to the delta, as in the legacy completions API, or in it under another name."""
    if delta.get("content"):
        return delta
    text = choice.get("text") or choice.get("content") or (delta.get("text") if delta.keys() <= _TEXT_DELTA else None)
    return {**delta, "content": text} if isinstance(text, str) and text else delta


_NAMES = frozenset({"role", "type", "name"})
_TEXT_DELTA = frozenset({"type", "text", "role", "content"})


def _normalize_delta(delta: Json) -> Json:
    """Return a delta whose content is text or a list of parts, and whose tool calls are objects with text arguments,
    because readers join them. Return the same object if it already has this form."""
    content, calls = delta.get("content"), delta.get("tool_calls")
    if isinstance(content, dict):
        delta = {**delta, "content": [content]}
    elif isinstance(content, bool):
        delta = {**delta, "content": None}
    elif not isinstance(content, str | list | None):
        delta = {**delta, "content": str(content)}
    if calls is not None:
        listed: list[object] = cast("list[object]", calls) if isinstance(calls, list) else [calls]
        usual = [_with_function(cast(Json, call), "function") for call in listed if isinstance(call, dict)]
        if not isinstance(calls, list) or list(map(id, usual)) != list(map(id, listed)):
            delta = {**delta, "tool_calls": usual}
    return _with_function(delta, "function_call")


def _with_function(holder: Json, name: str) -> Json:
    """Return `holder` with the arguments of the function under `name` encoded as text."""
    function = holder.get(name)
    arguments: object = cast(Json, function).get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, dict | list):
        return holder
    text = json.dumps(cast(object, arguments), separators=(",", ":"), allow_nan=False)
    return {**holder, name: {**cast(Json, function), "arguments": text}}


def _index(value: object, place: int) -> int:
    """Return the index, converted from a string or a float if necessary, otherwise `place`."""
    if type(value) is int and 0 <= value < INDEX_LIMIT:
        return value
    text = str(value).removesuffix(".0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else place

"""Merges the chunks of a chat completion into its messages: a pure fold over the log.

Keeps every field it does not know: strings of a delta are joined, lists with `index` merged by it, anything
else is replaced by the newest. So `content`, `reasoning_content`, `reasoning`, `refusal`, `tool_calls` and
whatever an upstream adds next come out whole (what upstreams send: OpenAI, GabForge, DeepSeek, vLLM, Azure, Gemini).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from broker.events import CHUNK, USAGE, Event

Json = dict[str, Any]


class _Pieces(list[str]):
    """A string that is still growing: joining at each chunk would copy a long answer as often as it has chunks."""


class Completion:
    """What the chunks so far amount to. Read `choices` when it is asked for, not per chunk: it renders."""

    __slots__ = ("_choices", "usage")

    def __init__(self) -> None:
        self._choices: dict[int, Json] = {}
        self.usage: Json | None = None

    def add(self, chunk: Json) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = _rendered(usage)
        for choice in _dicts(chunk.get("choices")):
            index = choice.get("index")
            self._add_choice(index if isinstance(index, int) else 0, choice)

    def _add_choice(self, index: int, choice: Json) -> None:
        merged = self._choices.setdefault(
            index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None}
        )
        for key, value in choice.items():
            if key == "delta":
                _merge(merged["message"], value)
            elif key == "logprobs" and isinstance(value, dict):
                merged[key] = merged.get(key) or {}
                _merge(merged[key], cast(Json, value))
            elif key not in ("index", "message") and value is not None:
                merged[key] = value

    @property
    def choices(self) -> list[Json]:
        """`[{"index", "message": {"role", "content", …}, "finish_reason", …}]`, by index."""
        return [_rendered(self._choices[index]) for index in sorted(self._choices)]


def text_of(choices: list[Json]) -> str:
    """Choice 0's content in merged choices, "" if it has none."""
    for choice in choices:
        if choice.get("index") == 0:
            content = choice.get("message", {}).get("content")
            return content if isinstance(content, str) else ""
    return ""


def fold(events: Iterable[Event], into: Completion | None = None) -> Completion:
    """Adds the chunks among the events of one attempt."""
    completion = into or Completion()
    for event in events:
        if event.type in (CHUNK, USAGE):
            completion.add(decode_chunk(event.data))
    return completion


def decode_chunk(data: bytes) -> Json:
    """msgspec is six times faster, but refuses half of a surrogate pair, which some upstreams split over two
    chunks; json takes it."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        return json.loads(data)


def _merge(message: Json, delta: object) -> None:
    if not isinstance(delta, dict):
        return
    for key, value in cast(Json, delta).items():
        old = message.get(key)
        if value is None:
            message.setdefault(key, None)
        elif key in _NAMES:
            message[key] = value
        elif isinstance(value, str):
            if isinstance(old, _Pieces):
                old.append(value)
            else:
                message[key] = _Pieces((value,))
        elif isinstance(value, list):
            message[key] = old if isinstance(old, list) else []
            _merge_list(message[key], cast("list[Any]", value))
        elif isinstance(value, dict):
            message[key] = old if isinstance(old, dict) else {}
            _merge(message[key], cast(Json, value))
        else:
            message[key] = value


# These name a thing: a repeated one replaces, it is not a continuation.
_NAMES = frozenset({"role", "id", "type", "index"})


def _merge_list(merged: list[Any], parts: list[Any]) -> None:
    """Each part goes into the item it continues, or is a new one."""
    for part in parts:
        if not isinstance(part, dict):
            merged.append(part)
            continue
        continued = _continued(_dicts(merged), cast(Json, part))
        if continued is None:
            continued = {}
            merged.append(continued)
        _merge(continued, cast(Json, part))


def _continued(items: list[Json], part: Json) -> Json | None:
    """By `index`; where upstreams leave it out of a tool call's pieces (Gemini's), the last call, unless another
    begins with an id of its own."""
    index = part.get("index")
    if isinstance(index, int):
        return next((item for item in items if item.get("index") == index), None)
    if "function" in part and not part.get("id"):
        return items[-1] if items else None
    return None


def _rendered(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return _whole("".join(value))
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, dict):
        return {_whole(key): _rendered(item) for key, item in cast(Json, value).items()}
    if isinstance(value, list):
        return [_rendered(item) for item in cast("list[Any]", value)]
    return value


def _whole(text: str) -> str:
    """Joins surrogate pairs that came in two chunks; a half that stays alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _dicts(value: object) -> list[Json]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast(Json, item) for item in items if isinstance(item, dict)]

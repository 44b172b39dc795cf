"""Merges the chunks of a chat completion into its messages: a pure fold over the log.

This module handles chunks and choices; merging.py has the rules for the fields of a message. No function raises on
any JSON in the log: reading a generation must not fail because of what an upstream sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from broker.chunks import decode_chunk, dicts_in, indexed_choices, text_of_content
from broker.completion.merging import Items, merge
from broker.completion.text import Text, rendered
from broker.events import CHUNK, USAGE, Event

Json = dict[str, Any]

_COLLECTED = frozenset({"logprobs", "token_ids"})
"""Fields of a choice that are, or contain, lists with one entry per token: those of successive chunks are concatenated.
For other fields (a content filter's verdict, a stop reason) the newest value counts."""

_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a message that become one string, unless they have parts other than plain text."""


class Completion:
    """The result of the chunks so far. Reading `choices` renders all messages: do so on demand, not per chunk."""

    __slots__ = ("_choices", "usage")

    def __init__(self) -> None:
        self._choices: dict[int, Json] = {}
        self.usage: Json | None = None

    def add(self, chunk: Json) -> None:
        """Add a chunk, as `decode_chunk` returns it."""
        usage = chunk.get("usage")
        if isinstance(usage, dict) and (not self.usage or any(cast(Json, usage).values())):  # zeros are ignored
            self.usage = rendered(usage) or self.usage
        for index, choice in indexed_choices(chunk.get("choices")):
            self._add_choice(index, choice)

    def _add_choice(self, index: int, choice: Json) -> None:
        merged = self._choices.get(index)
        if merged is None:
            message = {"role": "assistant", "content": None}
            merged = self._choices[index] = {"index": index, "message": message, "finish_reason": None}
        for key, value in choice.items():
            if key == "delta":
                if isinstance(value, dict):
                    merge(merged["message"], cast(Json, value))
            elif value is None or key == "index" or key == "message":
                pass
            elif key == "finish_reason":
                merged[key] = finish_reason(value) or merged[key]
            elif key in _COLLECTED:
                merged[key] = _collected(merged.get(key), value)
            elif value not in ("", [], {}):
                merged[key] = value
        whole = choice.get("message")
        if isinstance(whole, dict):  # some upstreams send one instead of deltas, or a summary at the end
            merge(merged["message"], _without_delta(cast(Json, whole), choice.get("delta")), whole=True)

    @property
    def choices(self) -> list[Json]:
        """`[{"index", "message": {"role", "content", …}, "finish_reason", …}]`, by index."""
        return [_rendered_choice(self._choices[index]) for index in sorted(self._choices)]


def _without_delta(message: Json, delta: object) -> Json:
    """Return the fields of a message that differ from the delta of the same choice: some upstreams send each piece as
    both."""
    sent = cast(Json, delta) if isinstance(delta, dict) else {}
    return {key: value for key, value in message.items() if key not in sent or sent[key] != value}


def _collected(known: Any, value: Any) -> Any:
    """Concatenate lists, and keep equal entries. For values other than lists the newest counts."""
    if isinstance(value, list):
        items = cast("list[Any]", known) if isinstance(known, list) else []
        items.extend(cast("list[Any]", value))
        return items
    if isinstance(value, dict):
        fields = cast(Json, known) if isinstance(known, dict) else {}
        for key, inner in cast(Json, value).items():
            is_list = isinstance(inner, list)
            fields[key] = _collected(fields.get(key), inner) if is_list else _newest(fields.get(key), inner)
        return fields
    return _newest(known, value)


def _newest(known: Any, value: Any) -> Any:
    return cast(Any, known) if value is None or isinstance(known, list | dict) else value


def finish_reason(value: object) -> str | None:
    """Return a choice's finish reason; None if it is not finished. Some upstreams send "", "null" or "unfinished"
    instead of null."""
    return value if isinstance(value, str) and value.strip().lower() not in NO_REASON else None


NO_REASON = frozenset(
    {"", "null", "none", "nil", "undefined", "unfinished", "not_finished", "in_progress", "running", "continue"}
    | {"finish_reason_unspecified"}
)


def text_of(choices: object) -> str:
    """Return the text of choice 0 in merged choices; "" if there is none."""
    for choice in dicts_in(choices):
        if choice.get("index") == 0:
            message = choice.get("message")
            return text_of_content(cast(Json, message).get("content")) if isinstance(message, dict) else ""
    return ""


def fold(events: Iterable[Event], into: Completion | None = None) -> Completion:
    """Add the chunks among the events of one attempt to a completion, a new one by default."""
    completion = into or Completion()
    for event in events:
        if event.type in (CHUNK, USAGE):
            completion.add(decode_chunk(event.data))
    return completion


def _rendered_choice(choice: Json) -> Json:
    message = {key: _join_text(key, value) for key, value in choice["message"].items()}
    calls = message.get("tool_calls")
    if not (isinstance(calls, Items) and calls.items):  # null, or [] along with content
        message.pop("tool_calls", None)
    return rendered({**choice, "message": message})


def _join_text(key: str, value: Any) -> Any:
    """Join plain text into one string, if it came as a list of text parts."""
    if key in _TEXT_FIELDS and isinstance(value, Items) and all(map(_is_plain, value.items)):
        return "".join([str(part["text"]) for part in value.items])
    return value


_PLAIN = frozenset({"type", "text", "index"})


def _is_plain(part: object) -> bool:
    fields = cast(Json, part) if isinstance(part, dict) else {}
    return fields.get("type") == "text" and isinstance(fields.get("text"), Text) and fields.keys() <= _PLAIN

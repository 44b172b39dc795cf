"""The request of a call that goes on after a text: whether there can be one, and its body."""

from __future__ import annotations

from typing import Any, cast

from broker.settings.upstream_entries import ContinueWith

Json = dict[str, Any]

_NOT_TEXT = ("tool_calls", "function_call", "refusal", "audio", "images")
"""Fields of a message after which a model cannot be asked to go on."""
_CONSTRAINTS = ("logprobs", "response_format", "structured_outputs", "audio", "regex", "ebnf", "json_schema", "grammar")
"""Parameters that apply to a reply from its beginning; so do those of vLLM that begin with `guided_`."""


def continuable_text(body: Json, choices: list[Json]) -> str | None:
    """Return the text after which another call can go on; None if none can: the partial reply is no plain text of a
    single choice, or the request asks for more than that. `choices`: the merged reply so far."""
    if (body.get("n") or 1) != 1 or len(choices) != 1 or choices[0]["index"] != 0:
        return None
    message = choices[0]["message"]
    text = message.get("content")
    if not isinstance(text, str) or not text or any(message.get(name) for name in _NOT_TEXT):
        return None
    if any(map(_is_constrained, body.items())) or not _is_unicode(text):
        return None
    return text


def _is_constrained(parameter: tuple[str, Any]) -> bool:
    name, value = parameter
    if name == "response_format" and isinstance(value, dict) and cast(Json, value).get("type") == "text":
        return False
    return value not in (None, False) and (name in _CONSTRAINTS or name.startswith("guided_"))


def _is_unicode(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair, which no request can contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def continued_body(body: Json, text: str, way: ContinueWith, received: int) -> Json | None:
    """Return the body of a call that goes on after `text`; None if it cannot be written. `received`: tokens of the
    text, by which the limit of the request is reduced: `has_all_tokens` is false."""
    messages = cast("list[Json]", body["messages"])
    if _has_own_prefix(body, messages[-1]):
        start = messages[-1].get("content")
        if not isinstance(start, str):
            return None
        whole = text if text.startswith(start) else start + text  # some upstreams repeat the given start in their reply
        last = {**messages[-1], "content": whole}
        messages = messages[:-1]
    else:
        last: Json = {"role": "assistant", "content": text}
    continued = {**body}
    if way == "prefix":
        last["prefix"] = True
    elif way == "continue_final_message":
        continued |= {"continue_final_message": True, "add_generation_prompt": False}
    continued["messages"] = [*messages, last]
    return continued | {name: limit - received for name, limit in _limits(body).items()}


def has_all_tokens(body: Json, received: int) -> bool:
    """Return whether a reply with this number of tokens has reached the limit of the request. A call for no token is
    impossible: upstreams refuse a limit of 0."""
    return any(limit <= received for limit in _limits(body).values())


def _limits(body: Json) -> dict[str, int]:
    given = {name: body.get(name) for name in ("max_tokens", "max_completion_tokens")}
    return {name: limit for name, limit in given.items() if isinstance(limit, int) and not isinstance(limit, bool)}


def sent_text(body: Json) -> str:
    """Return the text that a continued body asks the upstream to go on after."""
    return body["messages"][-1]["content"]


def _has_own_prefix(body: Json, last: Json) -> bool:
    """Return whether the caller has given the start of the reply."""
    return last.get("role") == "assistant" and bool(last.get("prefix") or body.get("continue_final_message"))

"""Parses a request: its body, the preset of its model, and the directive in its last user message.

`read` turns a request body into a `ChatRequest`. The tables `KEYS` and `STYLES` define the directives completely; the
docstring of `worker.simulator` describes them for users, and a test keeps the two in step.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from worker.simulator import text
from worker.simulator.faults import FAULTS
from worker.simulator.replies import REPLIES

DIRECTIVE = re.compile(r"\[\[sim\b([^\]]*)\]\]")
MAX_CHUNKS = 100_000_000


class BadRequest(Exception):
    """The request is malformed."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class UnknownModel(Exception):
    """The model does not exist."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


@dataclass(frozen=True, slots=True)
class Directive:
    """Options of a reply, one field per key; the package's docstring gives their meanings and units."""

    seed: int | None = None
    length: int | None = None
    speed: float = 40.0
    delay: float = 0.0
    size: int = 0
    reasoning: int = 0
    reasoning_field: str = "reasoning_content"
    tools: int = 0
    refusal: int = 0
    finish: str = ""
    shape: str = "openai"
    usage: str = "auto"
    stamp: bool = False
    newlines: str = "lf"
    unicode: bool = False
    split_surrogate: bool = False
    keepalive: float = 0.0
    split: int = 0
    label: str = ""
    fault: str = ""
    at: int = 5
    times: int | None = None
    retry_after: float | None = None
    bytes: int = 2 * 1024 * 1024
    to: str = ""
    continues: str = "yes"
    overlap: int = 0
    reply: str = ""


def _whole(value: str) -> int:
    number = int(value)
    if not 0 <= number <= MAX_CHUNKS:
        raise ValueError(value)
    return number


def _amount(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1e9:
        raise ValueError(value)
    return number


def _flag(value: str) -> bool:
    return {"1": True, "true": True, "": True, "0": False, "false": False}[value]


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(value)
        return value

    return parse


KEYS: dict[str, Callable[[str], object]] = {
    "seed": int,
    "length": _whole,
    "speed": _amount,
    "delay": _amount,
    "size": _whole,
    "reasoning": _whole,
    "reasoning_field": _one_of("reasoning_content", "reasoning"),
    "tools": _whole,
    "refusal": _whole,
    "finish": _one_of("stop", "length", "tool_calls", "content_filter"),
    "shape": _one_of("openai", "gabforge", "azure", "extra"),
    "usage": _one_of("auto", "never", "reject"),
    "stamp": _flag,
    "newlines": _one_of("lf", "crlf"),
    "unicode": _flag,
    "split_surrogate": _flag,
    "keepalive": _amount,
    "split": _whole,
    "label": str,
    "fault": _one_of(*FAULTS),
    "at": _whole,
    "times": _whole,
    "retry_after": _amount,
    "bytes": _whole,
    "to": str,
    "continues": _one_of("yes", "restart", "reject"),
    "overlap": _whole,
    "reply": _one_of(*REPLIES),
}

STYLES: dict[str, dict[str, Any]] = {
    "fast": {"speed": 0.0},
    "slow": {"speed": 4.0},
    "long": {"length": 2000},
    "reasoning": {"reasoning": 12},
    "tools": {"tools": 2},
    "refusal": {"refusal": 12},
    "length": {"finish": "length"},
    "filter": {"finish": "content_filter"},
    "gabforge": {"shape": "gabforge"},
    "azure": {"shape": "azure"},
    "extra": {"shape": "extra"},
    "no-usage": {"usage": "never"},
    "stamp": {"stamp": True},
    "crlf": {"newlines": "crlf"},
    "unicode": {"unicode": True},
    "surrogate": {"unicode": True, "split_surrogate": True},
    "keepalive": {"keepalive": 0.5, "delay": 2.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "sim": {},
    "gabforge-coder": {},
    **{f"sim-{style}": keys for style, keys in STYLES.items()},
    **{f"sim-{fault}": {"fault": fault} for fault in FAULTS},
}


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Body(msgspec.Struct, frozen=True):
    """The fields of a chat.completions body that the simulator uses."""

    messages: list[dict[str, Any]]
    model: str
    stream: bool | None = False
    n: int | None = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: StreamOptions | None = None
    continue_final_message: bool | None = False
    add_generation_prompt: bool | None = True


@dataclass(frozen=True, slots=True)
class Given:
    """The start of a reply, as the request's last message. `way`: how the request asks to go on after it: `plain`,
    `prefix`, `continue_final_message`; "" if it gives none. `skipped`: characters of the text that are not sent."""

    way: str = ""
    skipped: int = 0
    pieces: int = 0
    """Pieces of the text that are not sent."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request: its parameters and the options of the reply."""

    model: str
    directive: Directive
    seed: int
    stream: bool
    n: int
    length: int
    """Content chunks of each choice, with those before the start of the reply."""
    given: Given
    """The start of the reply that the request gives."""
    finish: str
    has_stream_options: bool
    include_usage: bool
    prompt_tokens: int
    parameters: tuple[str, ...]

    @property
    def unicode(self) -> bool:
        return self.directive.unicode or self.directive.split_surrogate

    @property
    def fault(self) -> str:
        return self.directive.fault

    def with_directive(self, **changes: Any) -> "ChatRequest":
        """Return the same request with a changed directive."""
        return replace(self, directive=replace(self.directive, **changes))


def read(raw: bytes) -> ChatRequest:
    """Parse `raw`, a chat.completions body. Raises BadRequest or UnknownModel."""
    try:
        body = msgspec.json.decode(raw, type=Body)
        parameters = tuple(sorted(msgspec.json.decode(raw, type=dict[str, msgspec.Raw])))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"Invalid request body: {error}") from error
    if not body.messages:
        raise BadRequest("Invalid 'messages': expected at least one message.", "messages")
    if body.model not in MODELS:
        raise UnknownModel(body.model)
    directive = parse(last_user_text(body.messages), MODELS[body.model])
    asked = body.messages[:-1] if len(body.messages) > 1 and _way(body) else body.messages
    seed = seed_of(asked) if directive.seed is None else directive.seed
    given = _given(body, directive, seed)
    length, finish = _length_and_finish(directive, body.max_completion_tokens or body.max_tokens, given.pieces)
    options = body.stream_options
    return ChatRequest(
        model=body.model,
        directive=directive,
        seed=seed,
        stream=bool(body.stream),
        n=min(max(1, body.n or 1), 128),
        length=length,
        given=given,
        finish=finish,
        has_stream_options=options is not None,
        include_usage=bool(options and options.include_usage) and directive.usage == "auto",
        prompt_tokens=sum(3 + len(DIRECTIVE.sub("", text_of(each)).split()) for each in body.messages),
        parameters=parameters,
    )


def parse(prompt: str, preset: Mapping[str, Any] | None = None) -> Directive:
    """Parse the directive in a prompt; its keys override `preset`. Raises BadRequest for an unknown key or value."""
    values: dict[str, Any] = dict(preset or {})
    for words in DIRECTIVE.findall(prompt):
        for word in words.split():
            key, _, value = word.partition("=")
            try:
                values[key] = KEYS[key](value)
            except (KeyError, ValueError) as error:
                raise BadRequest(f"The simulator does not understand {word!r}.", "messages") from error
    directive = Directive(**values)
    if directive.usage == "reject":
        return replace(directive, usage="auto", fault=directive.fault or "400-usage")
    return replace(directive, tools=directive.tools or 2) if directive.fault == "tool-no-index" else directive


def seed_of(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the default seed of a request, derived from its messages without directives."""
    said = [[message.get("role"), DIRECTIVE.sub("", text_of(message)).strip()] for message in messages]
    return int.from_bytes(hashlib.sha256(json.dumps(said).encode()).digest()[:4]) >> 1


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    return next((text_of(each) for each in reversed(messages) if each.get("role") == "user"), "")


class _Part(msgspec.Struct):
    text: str = ""


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's text from content that is a string or a list of parts; any other content is empty."""
    content: Any = message.get("content")
    if isinstance(content, str):
        return content
    try:
        return "".join(part.text for part in msgspec.convert(content, list[_Part]))
    except msgspec.ValidationError:
        return ""


def _way(body: Body) -> str:
    """Return how a request asks to go on after its last message; "" if that is not the assistant's."""
    last = body.messages[-1]
    if last.get("role") != "assistant":
        return ""
    return "continue_final_message" if body.continue_final_message else "prefix" if last.get("prefix") else "plain"


def _given(body: Body, directive: Directive, seed: int) -> Given:
    """Return the start of the reply. Raises BadRequest as vLLM and Mistral do."""
    if body.continue_final_message and body.add_generation_prompt is not False:
        raise BadRequest("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    way, start = _way(body), text_of(body.messages[-1])
    if way and directive.continues == "reject":
        raise BadRequest("Expected last role User or Tool (or Assistant with prefix True).", "messages")
    if not way or directive.continues == "restart":
        return Given(way)
    length = 60 if directive.length is None else directive.length
    pieces = text.pieces(seed, length, unicode=directive.unicode or directive.split_surrogate)
    if not "".join(pieces).startswith(start):
        return Given(way)
    skipped = max(0, len(start) - directive.overlap)
    return Given(way, skipped, len(pieces) - sum(1 for _ in text.after(pieces, skipped)))


def _length_and_finish(directive: Directive, limit: int | None, given: int) -> tuple[int, str]:
    """Return the content chunks of each choice, and the finish reason. `limit`: the request's max_tokens. `given`:
    chunks that the request has already."""
    instead = directive.tools or directive.refusal
    length = directive.length if directive.length is not None else (0 if instead else 60)
    if limit is not None and given + limit < length:
        return given + limit, directive.finish or "length"
    # Gemini's compatible endpoint sends "stop" after tool calls.
    calls_tools = directive.tools and directive.fault != "tool-no-index"
    return length, directive.finish or ("tool_calls" if calls_tools else "stop")

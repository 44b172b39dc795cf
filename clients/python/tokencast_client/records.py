"""The records of responses. Each keeps the JSON that it was made from in `raw`, with the fields that this version does
not know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

from tokencast_client.errors import RequestRefused, refusal

Json = dict[str, Any]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
R = TypeVar("R")

FINAL_STATUSES = frozenset({"completed", "failed", "cancelled"})
TERMINAL_EVENTS = frozenset({*FINAL_STATUSES, "gone"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """Why a generation waits. `position` is None unless it is in line; `retry_at` is the time of the next try."""

    reason: str
    position: int | None = None
    retry_at: float | None = None
    upstreams: list[str] = field(default_factory=list[str])
    """The upstreams that serve its model."""
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One requested completion. Times are unix seconds. Lists and activity events have neither `text` nor `choices`."""

    id: str
    status: Status
    """A status that this version does not know may be among them."""
    model: str
    created_at: float
    attempt: int
    """Number of the attempt, from 1; 0 before the first."""
    cursor: str
    """Cursor of the newest event."""
    started_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    usage: Json | None = None
    error: Json | None = None
    """`{"message", "type", "code"}` of a failed generation."""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    priority: int = 3
    run_at: float | None = None
    group: str | None = None
    retry_of: str | None = None
    """The generation that this one repeats."""
    upstream: str | None = None
    queue: QueueState | None = None
    """Only while it waits in the queue."""
    prompt: str | None = None
    """The first line of the last user message."""
    tenant: str | None = None
    """Only for keys with the role `operator`."""
    lease: Json | None = field(default=None, repr=False)
    """While a worker has it: `renewed_at` and `expires_at`, unix seconds. Not in lists."""
    reset_reason: str | None = None
    """Why its newest attempt restarted it, or the next will: `worker_lost`, `worker_stopped` or `upstream_error`."""
    text: str = ""
    """The content of choice 0 so far."""
    choices: list[Json] = field(default_factory=list[Json], repr=False)
    """The merged messages so far."""
    request: Json | None = field(default=None, repr=False)
    """The request body, if it was asked for."""
    raw: Json = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True)
class Event:
    """One event of a generation."""

    cursor: str
    """Its id, from which reading resumes."""
    name: str
    """`created`, `started`, `waiting`, `chunk`, `reset`, `gap`, `completed`, `failed`, `cancelled` or `gone`."""
    raw: str
    """Its data as received, in JSON."""
    generation: str = ""
    """Id of its generation."""

    @cached_property
    def data(self) -> Any:
        """Its data. For a chunk, that is the chunk of the upstream."""
        return json.loads(self.raw) if self.raw else None

    @property
    def text(self) -> str:
        """The text that this event adds to choice 0; "" for events other than chunks."""
        if self.name != "chunk":
            return ""
        try:
            return text_of(self.data)
        except (ValueError, RecursionError):  # an upstream can send numbers and depths that Python does not parse
            return ""

    @property
    def terminal(self) -> bool:
        """Whether this is the last event of its generation."""
        return self.name in TERMINAL_EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A stream token, which reads one generation. `url` is the event stream with the token, for an EventSource."""

    token: str
    expires_at: float
    url: str
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of generations: how many have each status, and their tokens."""

    name: str
    counts: dict[str, int]
    created_at: float
    ended_at: float | None = None
    """None until all of its generations have ended."""
    usage: Json | None = None
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryResult:
    """The result of `retry_all`. `data` has, for each match, the new generation or the error with which it was refused;
    in a dry run it has the matches themselves."""

    matched: int
    retried: int
    data: Sequence[Generation | RequestRefused]
    has_more: bool
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An attempt to deliver a webhook. `error` is None if the receiver accepted it."""

    n: int
    webhook_id: str
    type: str
    at: float
    status: int | None = None
    error: str | None = None
    seconds: float | None = None
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLevel:
    """Generations of one priority that wait for the same upstreams, for the same reason."""

    upstreams: list[str]
    priority: int
    waiting: int
    reason: str
    retry_at: float | None
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What waits, of all tenants. `paused`: `all`, `upstream NAME` or `tenant NAME`."""

    depth: int
    by_priority: dict[str, int]
    by_reason: dict[str, int]
    levels: list[QueueLevel]
    paused: list[str]
    raw: Json = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """An upstream, its limits, and its calls now. `circuit`: `closed`, `open` or `half_open`."""

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
    raw: Json = field(repr=False, compare=False)


Items = list[Generation | RequestRefused]
"""The results of a batch, in order."""


def build(kind: type[R], value: object, **replaced: object) -> R:
    """Return the record of a JSON object. Raises ValueError if a field is missing that each gateway sends."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    source = cast(Json, value)
    found: Json = {"raw": source, **replaced}
    for each in fields(kind):  # pyright: ignore[reportArgumentType] - each record is a dataclass
        if each.name in found:
            continue
        if each.name in source:
            found[each.name] = source[each.name]
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"the field {each.name!r} is missing")
    return kind(**found)


def to_generation(value: object) -> Generation:
    """Return the record of a generation."""
    source = to_object(value)
    if not isinstance(source.get("id"), str):
        raise ValueError("not a generation")
    waits: object = source.get("queue")
    return build(Generation, source, queue=build(QueueState, waits) if waits else None)


def to_item(value: object) -> Generation | RequestRefused:
    """Return the generation of an item of a batch, or the error with which it was refused."""
    source = to_object(value)
    if "id" in source:
        return to_generation(source)
    error = to_object(source.get("error"))
    return refusal(int(error["status"]), error, retry_after=error.get("retry_after"), body=source)


def to_items(value: object) -> Items:
    """Return the items in the `data` of a response."""
    return [to_item(item) for item in data_of(value)]


def data_of(value: object) -> list[Any]:
    """Return the `data` of a list."""
    data: object = cast(Json, value).get("data") if isinstance(value, dict) else None
    if not isinstance(data, list):
        raise ValueError("not a list")
    return cast("list[Any]", data)


def to_object(value: object) -> Json:
    """Return a JSON object unchanged."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return cast(Json, value)


def text_of(chunk: object) -> str:
    """Return the text that a chunk adds to choice 0. Reasoning and images are not text."""
    found = ""
    for position, choice in enumerate(_objects(_object(chunk).get("choices"))):
        if choice.get("index", position) in (0, "0"):
            found += _text_of_content(_object(choice.get("delta") or choice.get("message")).get("content"))
    return found


def _text_of_content(content: object) -> str:
    """Return the text of a `content`: a string, or a list of typed parts."""
    if isinstance(content, str):
        return content
    typed = (part for part in _objects(content) if part.get("type") in (None, "text", "output_text"))
    return "".join(str(part.get("text") or "") for part in typed)


def _object(value: object) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[Json]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast(Json, item) for item in items if isinstance(item, dict)]

"""The JSON forms of a generation and of what belongs to it.

The one place that names their fields: gateways encode these records, the command line checks responses against them,
and `/openapi.json` and `/docs` describe them. A client must ignore fields that it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from broker.events import NAMES, Status
from broker.request import METADATA_NAME, METADATA_PAIRS, METADATA_VALUE

Json = dict[str, Any]

GenerationId = Annotated[str, Meta(pattern="^gen_[0-9a-z]{34}$")]
CursorText = Annotated[str, Meta(pattern=r"^[0-9]{1,16}-[0-9]{1,10}$", examples=["1850812345678901-7"])]
Metadata = Annotated[
    dict[str, Annotated[str, Meta(max_length=METADATA_VALUE)]],
    Meta(extra_json_schema={"maxProperties": METADATA_PAIRS, "propertyNames": {"maxLength": METADATA_NAME}}),
]


class GenerationSummary(Struct, frozen=True, kw_only=True):
    """A generation without its text, as in lists and in the activity stream."""

    id: GenerationId
    object: Literal["generation"]
    status: Status
    model: str
    created_at: Annotated[float, Meta(description="Unix seconds, as all times in this API.")]
    started_at: float | None
    first_token_at: float | None
    ended_at: float | None
    attempt: Annotated[int, Meta(ge=0, description="Number of the attempt, from 1; 0 before the first.")]
    cursor: Annotated[CursorText, Meta(description="Cursor of the newest event.")]
    usage: Json | None
    error: Json | None
    metadata: Metadata


class Choice(TypedDict):
    """A choice of the completion: its merged message so far."""

    index: int
    message: Json
    finish_reason: str | None


class Generation(GenerationSummary, frozen=True, kw_only=True):
    """A generation with its text so far."""

    text: Annotated[str, Meta(description="The content of choice 0 so far.")]
    choices: Annotated[list[Choice], Meta(description="The merged messages so far.")]
    request: Annotated[
        Json | UnsetType | None,
        Meta(
            description="The request body, if `include` names it; null for a cancelled generation whose request was "
            "too long to be kept."
        ),
    ] = UNSET


class GenerationList(Struct, tag_field="object", tag="list", frozen=True):
    """A page of generations."""

    data: list[GenerationSummary]
    has_more: bool


class Event(Struct, frozen=True):
    """An event of a generation's log."""

    id: CursorText
    event: Annotated[str, Meta(examples=sorted(set(NAMES.values())))]
    at: Annotated[int, Meta(description="Milliseconds since the start of the attempt.")]
    data: Raw


class EventPage(Struct, tag_field="object", tag="list", frozen=True):
    """A page of events."""

    data: list[Event]
    has_more: bool


class Token(Struct, frozen=True):
    """A stream token, and the path of the event stream that it reads."""

    token: str
    expires_at: float
    events_url: str

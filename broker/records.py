"""The JSON forms of a generation and of what belongs to it.

The one place that names their fields: gateways encode these records, the command line checks responses against them,
and `/openapi.json` and `/docs` describe them. A client must ignore fields that it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from broker.events import NAMES, ResetReason, Status, WaitingReason
from broker.request.body import METADATA_NAME, METADATA_PAIRS, METADATA_VALUE
from broker.request.options import Priority

Json = dict[str, Any]

GenerationId = Annotated[str, Meta(pattern="^gen_[0-9a-z]{34}$")]
CursorText = Annotated[str, Meta(pattern=r"^[0-9]{1,16}-[0-9]{1,10}$", examples=["1850812345678901-7"])]
Metadata = Annotated[
    dict[str, Annotated[str, Meta(max_length=METADATA_VALUE)]],
    Meta(extra_json_schema={"maxProperties": METADATA_PAIRS, "propertyNames": {"maxLength": METADATA_NAME}}),
]


class QueueState(Struct, frozen=True):
    """Why a queued generation waits."""

    position: Annotated[
        int | None, Meta(description="From 1, for the reasons `queued` and `upstream_limit`; otherwise null.")
    ]
    reason: WaitingReason
    retry_at: Annotated[float | None, Meta(description="Unix seconds of the next try, if it is known.")]
    upstreams: Annotated[
        list[str], Meta(description="The upstreams that serve its model; empty if it was enqueued by an old version.")
    ] = []


Circuit = Literal["closed", "open", "half_open"]
Count = Annotated[int, Meta(ge=0)]


class QueueLevel(Struct, frozen=True):
    """Generations of one priority that wait for the same upstreams, for the same reason."""

    upstreams: list[str]
    priority: int
    waiting: Count
    reason: WaitingReason
    retry_at: float | None


class QueueRecord(Struct, tag_field="object", tag="queue", frozen=True):
    """What waits, of all tenants."""

    depth: Annotated[int, Meta(ge=0, description="Waiting generations, the scheduled ones included.")]
    by_priority: Annotated[dict[str, Count], Meta(description="Without the scheduled ones.")]
    by_reason: dict[str, Count]
    levels: list[QueueLevel]
    paused: Annotated[list[str], Meta(description="`all`, `upstream NAME` or `tenant NAME`.")]


class UpstreamRecord(Struct, frozen=True):
    """An upstream, its limits, and its calls now."""

    name: str
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    told_limits: Annotated[
        list[Literal["requests_per_minute", "tokens_per_minute"]],
        Meta(description="Those of the two that come from the upstream's response headers."),
    ]
    learned_concurrency: Annotated[int | None, Meta(description="Calls at once that it is known to take.")]
    in_flight: Count
    waiting: Annotated[int, Meta(ge=0, description="Generations that wait for it, alone or among others.")]
    refused: Annotated[int, Meta(ge=0, description="Calls that it refused (429, 503), since a week without calls.")]
    circuit: Circuit
    retry_at: Annotated[float | None, Meta(description="Unix seconds before which no worker calls it.")]
    paused: bool


class UpstreamList(Struct, tag_field="object", tag="list", frozen=True):
    """The upstreams."""

    data: list[UpstreamRecord]


class WorkerGeneration(Struct, frozen=True):
    """A generation that a worker runs."""

    id: GenerationId
    tenant: str
    model: str
    upstream: str
    claimed_at: Annotated[float, Meta(description="Unix seconds.")]


class WorkerRecord(Struct, frozen=True, kw_only=True):
    """A worker, by its last heartbeat. Fields that a worker of an older version does not tell are null."""

    id: str
    state: Annotated[
        Literal["running", "draining", "lost"],
        Meta(description="draining: it takes no more generations; lost: it stopped unexpectedly in the last hour."),
    ]
    seen_at: Annotated[float, Meta(description="Unix seconds.")]
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    slots: int | None = None
    running: int | None = None
    upstreams: Annotated[list[str] | None, Meta(description="Those that it can call.")] = None
    started_at: float | None = None
    generations: Annotated[list[WorkerGeneration], Meta(description="What it runs, at most 100.")] = []


class WorkerList(Struct, tag_field="object", tag="list", frozen=True):
    """The workers."""

    data: list[WorkerRecord]


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
    priority: Priority
    run_at: float | None
    group: str | None
    retry_of: Annotated[str | None, Meta(description="The generation that this one repeats.")]
    upstream: Annotated[str | None, Meta(description="The upstream that has it or had it last.")]
    queue: Annotated[QueueState | None, Meta(description="Only while it waits in the queue.")]
    prompt: Annotated[
        str | None,
        Meta(
            description="First line of the last user message, at most 120 characters. Null if it is not stored, and "
            "for readers with a stream token."
        ),
    ] = None
    tenant: Annotated[str | UnsetType, Meta(description="Only for operators, who see several tenants.")] = UNSET


class Lease(Struct, frozen=True):
    """A worker's claim on a generation. A living worker renews it before two thirds of it are over."""

    renewed_at: float
    expires_at: Annotated[
        float, Meta(description="Unix seconds after which the generation is given to another worker.")
    ]


class Choice(TypedDict):
    """A choice of the completion: its merged message so far."""

    index: int
    message: Json
    finish_reason: str | None


class Generation(GenerationSummary, frozen=True, kw_only=True):
    """A generation with its text so far."""

    lease: Annotated[Lease | None, Meta(description="Only while a worker has it.")]
    reset_reason: Annotated[
        ResetReason | None,
        Meta(
            description="Why its newest attempt was, or its next one will be, a restart: the `reason` of its `reset`."
        ),
    ]
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
    last_id: Annotated[
        GenerationId | None,
        Meta(description="`after` of the next page. With filters it may be an id that is not on this page."),
    ] = None


class ItemErrorDetail(Struct, frozen=True):
    """An error, with the status that a request for this item alone would have got."""

    message: str
    type: str
    param: str | None
    code: str | None
    status: int
    retry_after: Annotated[int | UnsetType, Meta(description="Seconds after which to try again.")] = UNSET


class ItemError(Struct, frozen=True):
    """An item of a batch that was not accepted."""

    error: ItemErrorDetail


_ITEM = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("GenerationSummary", "ItemError")]}
Item = Annotated[Any, Meta(extra_json_schema=_ITEM)]
"""A GenerationSummary, or an ItemError."""


class GenerationBatch(Struct, tag_field="object", tag="list", frozen=True):
    """The result of a batch: for each item, in order, its generation or an error."""

    data: list[Item]


class RetryResult(Struct, frozen=True):
    """The result of a bulk retry."""

    matched: Annotated[int, Meta(description="Number of generations that match, up to `limit`.")]
    retried: Annotated[int, Meta(description="Number of them that were enqueued again.")]
    data: Annotated[
        list[Item],
        Meta(
            description="For each match, newest first, the new generation or an error; in a dry run the match itself."
        ),
    ]
    has_more: Annotated[bool, Meta(description="Whether more generations may match.")]


class CancelResult(Struct, frozen=True):
    """The result of a bulk cancellation."""

    matched: Annotated[int, Meta(description="Number of generations that match, up to `limit`.")]
    cancelled: Annotated[int, Meta(description="Number of them that were cancelled.")]
    data: Annotated[
        list[Item],
        Meta(
            description="Each match, newest first, after its cancellation, or an error; in a dry run as it was found."
        ),
    ]
    has_more: Annotated[bool, Meta(description="Whether more generations may match.")]


class DeleteResult(Struct, frozen=True):
    """The result of a bulk deletion."""

    matched: Annotated[int, Meta(description="Number of generations that match, up to `limit`.")]
    deleted: Annotated[int, Meta(description="Number of them that were deleted.")]
    data: Annotated[list[Item], Meta(description="Each match, newest first, as it was found, or an error.")]
    has_more: Annotated[bool, Meta(description="Whether more generations may match.")]


class GroupUsage(Struct, frozen=True):
    """Tokens of all generations of a group that have ended."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Group(Struct, tag_field="object", tag="group", frozen=True, kw_only=True):
    """A group of generations."""

    name: str
    counts: Annotated[
        dict[Status, int], Meta(description="Generations by status, including expired ones but no deleted ones.")
    ]
    usage: GroupUsage
    created_at: Annotated[float, Meta(description="Creation of its first generation.")]
    ended_at: Annotated[float | None, Meta(description="End of its last generation; null until all have ended.")]


class Event(Struct, frozen=True):
    """An event of a generation's log."""

    id: CursorText
    event: Annotated[str, Meta(examples=sorted(set(NAMES.values())))]
    at: Annotated[
        int, Meta(description="Milliseconds since the start of the attempt, or since the creation before that.")
    ]
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


DeliveryError = Literal[
    "refused",
    "redirected",
    "timeout",
    "connection_failed",
    "tls_failed",
    "name_not_resolved",
    "address_refused",
    "invalid_url",
]


class Delivery(Struct, frozen=True):
    """An attempt to deliver a webhook."""

    n: Annotated[int, Meta(ge=1, description="Number of the attempt.")]
    webhook_id: Annotated[str, Meta(description="The same for all attempts.")]
    type: Annotated[str, Meta(examples=["generation.completed"])]
    at: Annotated[float, Meta(description="Unix seconds.")]
    seconds: Annotated[float, Meta(description="Duration until the response was read, or the attempt failed.")]
    status: Annotated[int | None, Meta(description="HTTP status of the response; null without one.")]
    error: Annotated[DeliveryError | None, Meta(description="null if the receiver accepted it.")]


class DeliveryList(Struct, tag_field="object", tag="list", frozen=True):
    """The newest 50 attempts to deliver a generation's webhook, oldest first."""

    data: list[Delivery]
    retry_at: Annotated[float | None, Meta(description="Unix seconds of the next attempt; null if there is none.")]

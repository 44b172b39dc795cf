"""The JSON forms of the history."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from broker.records import Count, CursorText, GenerationId

_Percentile = Annotated[float | None, Meta(description="Seconds, to within 9 %; null without a first token.")]


class FirstTokens(Struct, frozen=True):
    """Times from the creation of generations, or the time they are scheduled for, to their first token."""

    count: Count
    p50: _Percentile
    p95: _Percentile


class HistoryTotals(Struct, frozen=True, kw_only=True):
    """The figures of a period."""

    created: Annotated[
        Count | None, Meta(description="null with `upstream`: a generation has none when it is created.")
    ]
    started: Annotated[int, Meta(ge=0, description="Attempts whose call an upstream has accepted.")]
    completed: Count
    failed: Count
    cancelled: Count
    tokens: Annotated[int, Meta(ge=0, description="Completion tokens, counted when they arrive.")]
    tokens_per_second: float
    first_token: FirstTokens
    queue_depth: Annotated[
        Count | None,
        Meta(description="The most that waited; null with `model`, and with both `upstream` and a tenant."),
    ]


class HistoryMinute(HistoryTotals, frozen=True, kw_only=True):
    """The figures of one minute."""

    at: Annotated[float, Meta(description="Its beginning, in unix seconds.")]
    seconds: Annotated[float, Meta(description="Its length; the last one is not over yet.")]


class HistoryError(Struct, frozen=True, kw_only=True):
    """Errors with the same code, model and upstream."""

    code: str
    model: Annotated[str | None, Meta(description="null: further models, above 32 a minute.")]
    upstream: Annotated[str | None, Meta(description="null: no upstream had accepted the call.")]
    failed: Annotated[int, Meta(ge=0, description="Generations that failed.")]
    returned: Annotated[
        int, Meta(ge=0, description="Calls that failed before the first token; the generation went back to the queue.")
    ]
    last_at: Annotated[float, Meta(description="Unix seconds, to within 5 s.")]
    sample: Annotated[GenerationId, Meta(description="The latest generation; it may have been deleted.")]


class HistoryRecord(Struct, tag_field="object", tag="history", frozen=True, kw_only=True):
    """The last minutes, oldest first. Figures appear after up to five seconds, in the minute in which they appear."""

    data: list[HistoryMinute]
    total: HistoryTotals
    errors: Annotated[list[HistoryError], Meta(description="The most frequent ones first, at most 100.")]
    models: Annotated[list[str], Meta(description="Those of this time, whatever the filter.")]
    upstreams: Annotated[list[str], Meta(description="Those of this time, whatever the filter.")]


class SubscriberRecord(Struct, frozen=True, kw_only=True):
    """An open stream of a generation."""

    gateway: str
    dialect: str
    since: Annotated[float, Meta(description="Unix seconds.")]
    cursor: Annotated[CursorText, Meta(description="The last event that was written to it.")]
    lag_events: Annotated[int, Meta(ge=0, description="Events of the log that were not written to it.")]
    unread_bytes: Annotated[int, Meta(ge=0, description="Bytes that were written and wait for the peer to read.")]
    stalled: Annotated[bool, Meta(description="The peer reads nothing, and is disconnected soon.")]


class GatewaySubscribers(Struct, frozen=True):
    """The number of a generation's subscribers at a gateway process."""

    gateway: str
    subscribers: Count
    at: Annotated[float, Meta(description="When it counted them, in unix seconds.")]


class SubscriberList(Struct, tag_field="object", tag="list", frozen=True):
    """The subscribers of a generation, the most delayed first, at most 100 of each gateway."""

    data: list[SubscriberRecord]
    gateways: Annotated[list[GatewaySubscribers], Meta(description="The first one answers; then others that have any.")]

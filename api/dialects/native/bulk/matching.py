"""The bodies of bulk operations: the generations that match, and what to do with how many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar, get_args

import msgspec
from msgspec import Meta

from api.query import seconds_of
from broker.bulk.conditions import MAX_SEARCH, Conditions
from broker.bulk.operations import BATCH_LIMIT
from broker.errors import InvalidRequest
from broker.events import Status
from broker.request.body import parse_json
from broker.request.options import MAX_GROUP


def _one_of(*statuses: str) -> Meta:
    return Meta(extra_json_schema={"enum": list(statuses)})


AnyStatus = Annotated[str, _one_of(*get_args(Status))]
FinalStatus = Annotated[str, _one_of("completed", "failed", "cancelled")]
OpenStatus = Annotated[str, _one_of("queued", "in_progress")]
Moment = Annotated[float | str, Meta(description="Unix seconds, or a time by ISO 8601.")]


class Matching(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Generations that match all of these conditions."""

    model: str | None = None
    code: Annotated[str | None, Meta(description="Error code.")] = None
    group: Annotated[str, Meta(min_length=1, max_length=MAX_GROUP)] | None = None
    upstream: Annotated[str | None, Meta(description="The upstream that has it or had it last.")] = None
    metadata: Annotated[dict[str, str] | None, Meta(description="Pairs of its metadata.")] = None
    search: Annotated[str, Meta(max_length=MAX_SEARCH, description="As `search` of the list.")] | None = None
    since: Annotated[Moment | None, Meta(description="Created at this time or later.")] = None
    until: Annotated[Moment | None, Meta(description="Created before this time.")] = None
    limit: Annotated[int, Meta(ge=1, le=BATCH_LIMIT)] = BATCH_LIMIT
    dry_run: Annotated[bool, Meta(description="Only find them.")] = False
    tenant: Annotated[str | None, Meta(description="For operators: of this tenant. Default: of their own.")] = None


class RetryRequest(Matching, frozen=True, kw_only=True):
    """The generations to retry: those that match all of these."""

    status: FinalStatus | list[FinalStatus] = "failed"


class CancelRequest(Matching, frozen=True, kw_only=True):
    """The generations to cancel: those that match all of these."""

    status: Annotated[OpenStatus | list[OpenStatus] | None, Meta(description="Default: both.")] = None


class DeleteRequest(Matching, frozen=True, kw_only=True):
    """The generations to delete: those that match all of these."""

    status: AnyStatus | list[AnyStatus]


_Kind = TypeVar("_Kind", bound=Matching)


def parse_matching(body: bytes, kind: type[_Kind]) -> _Kind:
    """Validate the body of a bulk operation; a null condition is the same as none. Raises InvalidRequest."""
    fields = parse_json(body) if body else {}
    for name in fields.keys() - set(kind.__struct_fields__):
        raise InvalidRequest(f"`{name[:100]}` is not a field of this request.", param=name[:100])
    if kind is DeleteRequest and "status" not in fields:  # an empty body must not delete everything
        raise InvalidRequest("`status` is required.", param="status", code="missing_required_parameter")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise InvalidRequest(f"{message}.", param=path.strip(".`") or None) from None


def conditions_of(asked: Matching, status: str | Sequence[str]) -> Conditions:
    """Return the conditions. Raises InvalidRequest for a time."""
    return {
        "status": status,
        "model": asked.model,
        "code": asked.code,
        "group": asked.group,
        "upstream": asked.upstream,
        "metadata": asked.metadata,
        "search": asked.search,
        "since": seconds_of(asked.since, "since"),
        "until": seconds_of(asked.until, "until"),
    }

"""The conditions by which generations are listed, retried, cancelled and deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from broker.errors import InvalidRequest
from broker.events import STATUSES
from broker.ids import created_within
from broker.request.body import METADATA_PAIRS
from broker.request.options import check_group
from broker.store.filters import Filters

MAX_SEARCH = 200
"""Maximum characters of a search."""


class Conditions(TypedDict, total=False):
    """Conditions that all have to be met; None is the same as a missing one. Times are unix seconds."""

    status: str | Sequence[str] | None
    """The generation has this status, or one of these."""
    model: str | None
    code: str | None
    """It failed with this error code."""
    group: str | None
    upstream: str | None
    """This upstream has it or had it last."""
    metadata: Mapping[str, str] | None
    """Its metadata contains these pairs."""
    search: str | None
    """Each of these words is part of its id, model, group, upstream, error code, metadata (`name=value`), or the first
    line of its prompt. A word `gen_…` is the beginning of its id."""
    since: float | None
    """It was created at this time or later."""
    until: float | None
    """It was created before this time."""


def make_filters(
    *,
    status: str | Sequence[str] | None = None,
    model: str | None = None,
    code: str | None = None,
    group: str | None = None,
    upstream: str | None = None,
    metadata: Mapping[str, str] | None = None,
    search: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Filters:
    """Return checked filters. Raises InvalidRequest."""
    named = [status] if isinstance(status, str) else list(status or ())
    if any(one not in STATUSES for one in named):
        raise InvalidRequest(f"`status` must be one of {', '.join(STATUSES)}.", param="status")
    if group is not None:
        check_group(group, "group")
    if metadata and len(metadata) > METADATA_PAIRS:
        raise InvalidRequest(f"`metadata` can have up to {METADATA_PAIRS} keys.", param="metadata")
    if search and len(search) > MAX_SEARCH:
        raise InvalidRequest(f"`search` can have up to {MAX_SEARCH} characters.", param="search")
    words = tuple((search or "").casefold().split())
    since_ms = None if since is None else _ms(since, "since")
    until_ms = None if until is None else _ms(until, "until")
    for word in words:  # the beginning of an id says when it was created: its index is read from there
        first, last = created_within(word)
        since_ms = max(since_ms or first, first) if first else since_ms
        until_ms = min(until_ms or last, last) if last else until_ms
    return Filters(
        status=frozenset(named),
        model=model,
        code=code,
        group=group,
        upstream=upstream,
        metadata=dict(metadata or {}),
        search=words,
        since_ms=since_ms,
        until_ms=until_ms,
    )


def _ms(seconds: float, name: str) -> int:
    if not -1e12 < seconds < 1e12:
        raise InvalidRequest(f"`{name}` must be a time in unix seconds.", param=name)
    return -int(-seconds * 1000 // 1)  # rounded up: creation times have milliseconds

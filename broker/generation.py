"""The record of a generation, and its construction from the fields of the generation's meta hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from msgspec import UNSET, UnsetType, to_builtins
from msgspec.json import decode

from broker import records
from broker.completion.fold import text_of
from broker.events import FINAL_STATUSES
from broker.ids import Cursor, created_ms
from broker.request import CompletionRequest

Json = dict[str, Any]

USAGE_BYTES = 4096
"""Maximum size of a `usage` object in bytes; a larger one is reduced to its totals."""
TOTALS = ("prompt_tokens", "completion_tokens", "total_tokens")
_SAME = tuple(name for name in records.GenerationSummary.__struct_fields__ if name not in ("object", "cursor"))
FIELDS = ("tn", "st", "md", "ca", "sa", "fa", "ea", "k", "a", "n", "us", "er", "mt", "fr", "xa", "tk", "tp")
"""Fields of a generation's meta hash (broker/store/keys.py), in the order in which they are requested."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One requested completion. Times are unix seconds; `error` is `{"message", "type", "code", …}`."""

    id: str
    status: str
    model: str
    created_at: float
    started_at: float | None
    first_token_at: float | None
    ended_at: float | None
    attempt: int
    cursor: Cursor
    usage: Json | None
    error: Json | None
    metadata: dict[str, str]
    finish_reason: str | None = None
    text: str = ""
    choices: Sequence[Json] = ()
    trace: str = ""
    """The `traceparent` of the request that created the generation; "" if tracing is off."""

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in FINAL_STATUSES

    def lacks(self, position: Cursor) -> bool:
        """Return whether Redis has lost the event at this position for good: the generation has ended, or continues in
        another attempt. Within one attempt its worker can still restore it; a queued generation starts again anyway."""
        if position <= self.cursor:
            return False
        return self.ended or (self.status == "in_progress" and position.attempt != self.cursor.attempt)

    def summary(self) -> records.GenerationSummary:
        """Return the record without text and choices."""
        return records.GenerationSummary(**self._public())

    def record(self, request: Json | UnsetType | None = UNSET) -> records.Generation:
        """Return the whole record, with a request body if one is given."""
        choices = cast(list[records.Choice], list(self.choices))
        return records.Generation(**self._public(), text=self.text, choices=choices, request=request)

    def to_json(self) -> Json:
        """Return the whole record as a dictionary."""
        return to_builtins(self.record())

    def _public(self) -> Json:
        public = {name: getattr(self, name) for name in _SAME}
        return {**public, "object": "generation", "cursor": str(self.cursor)}

    def with_choices(self, choices: Sequence[Json]) -> Generation:
        """Return a copy with these merged choices, and the text of choice 0."""
        return replace(self, choices=choices, text=text_of(choices))


def queued(gid: str, request: CompletionRequest) -> Generation:
    """Return the record of a generation that has just been created."""
    created = created_ms(gid) / 1000
    cursor = Cursor(0, 1)
    return Generation(gid, "queued", request.model, created, None, None, None, 0, cursor, None, None, request.metadata)


def from_fields(gid: str, fields: Sequence[bytes | None]) -> Generation:
    """Build a generation from the values of FIELDS; its `status` is empty if the meta hash does not exist."""
    m = dict(zip(FIELDS, fields, strict=True))
    return Generation(
        id=gid,
        status=(m["st"] or b"").decode(),
        model=(m["md"] or b"").decode(),
        created_at=int(m["ca"] or 0) / 1000,
        started_at=_seconds(m["sa"]),
        first_token_at=_seconds(m["fa"]),
        ended_at=_seconds(m["ea"]),
        attempt=int(m["k"] or 0),
        cursor=Cursor(int(m["a"] or 0), int(m["n"] or 0)),
        usage=_usage(m["us"]),
        error=_json(m["er"]),
        metadata=_json(m["mt"]) or {},
        finish_reason=(m["fr"] or b"").decode() or None,
        trace=(m["tp"] or b"").decode(),
    )


def _usage(text: bytes | None) -> Json | None:
    usage = _json(text)
    return bounded_usage(cast(Json, usage), len(text or b"")) if isinstance(usage, dict) else None


def bounded_usage(usage: Json, size: int) -> Json:
    """Limit a usage object of `size` bytes: one larger than USAGE_BYTES is reduced to its totals, because it is part of
    each row of a list and of each activity event."""
    if size <= USAGE_BYTES:
        return usage
    return {name: usage[name] for name in TOTALS if isinstance(usage.get(name), int)}


def _seconds(ms: bytes | None) -> float | None:
    return int(ms) / 1000 if ms else None


def _json(text: bytes | None) -> Any:
    return decode(text) if text else None

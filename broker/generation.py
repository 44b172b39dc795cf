"""The record of a generation, and its construction from the fields of the generation's meta hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from urllib.parse import unquote

from msgspec import UNSET, UnsetType, to_builtins
from msgspec.json import decode

from broker import records
from broker.completion.fold import text_of
from broker.events import FINAL_STATUSES, ResetReason, WaitingReason
from broker.ids import Cursor, created_ms
from broker.request.body import CompletionRequest
from broker.request.options import DEFAULT_PRIORITY

Json = dict[str, Any]

USAGE_BYTES = 4096
"""Maximum size of a `usage` object in bytes; a larger one is reduced to its totals."""
TOTALS = ("prompt_tokens", "completion_tokens", "total_tokens")
_SAME = tuple(
    name for name in records.GenerationSummary.__struct_fields__ if name not in ("object", "cursor", "tenant")
)
FIELDS = (
    *("tn", "st", "md", "ca", "sa", "fa", "ea", "k", "a", "n", "us", "er", "mt", "fr", "xa", "tk", "tp"),
    *("pr", "ra", "gr", "ro", "up", "wr", "rt", "own", "ln", "qd", "es", "le", "ls", "why", "pv"),
)
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
    priority: int = DEFAULT_PRIORITY
    run_at: float | None = None
    group: str | None = None
    retry_of: str | None = None
    upstream: str | None = None
    prompt: str | None = None
    queue: records.QueueState | None = None
    tenant: str = ""
    """Its owner; "" if it is not known here."""
    lane: str = ""
    """The upstreams that serve its model, in the queue's notation."""
    deadline: float | None = None
    """End of its waiting."""
    ticket: int = 1
    """Number of its ticket."""
    tokens: int = 0
    """Tokens that a call reserves."""
    lease: records.Lease | None = None
    reset_reason: ResetReason | None = None
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

    def summary(self, *, named: bool = False) -> records.GenerationSummary:
        """Return the record without text and choices. `named`: with its tenant."""
        return records.GenerationSummary(**self._public(), tenant=self.tenant if named else UNSET)

    def record(self, request: Json | UnsetType | None = UNSET, *, named: bool = False) -> records.Generation:
        """Return the whole record, with a request body if one is given. `named`: with its tenant."""
        choices = cast(list[records.Choice], list(self.choices))
        tenant = self.tenant if named else UNSET
        return records.Generation(
            **self._public(),
            tenant=tenant,
            lease=self.lease,
            reset_reason=self.reset_reason,
            text=self.text,
            choices=choices,
            request=request,
        )

    def to_json(self) -> Json:
        """Return the whole record as a dictionary."""
        return to_builtins(self.record())

    def _public(self) -> Json:
        public = {name: getattr(self, name) for name in _SAME}
        return {**public, "object": "generation", "cursor": str(self.cursor)}

    def with_choices(self, choices: Sequence[Json]) -> Generation:
        """Return a copy with these merged choices, and the text of choice 0."""
        return replace(self, choices=choices, text=text_of(choices))


def queued(
    gid: str, request: CompletionRequest, lane: str, tenant: str = "", retry_of: str | None = None
) -> Generation:
    """Return the record of a generation that has just been created. `lane`: the upstreams that serve its model."""
    created, options = created_ms(gid), request.options
    run_at = options.run_at_ms(created)
    return Generation(
        id=gid,
        status="queued",
        model=request.model,
        created_at=created / 1000,
        started_at=None,
        first_token_at=None,
        ended_at=None,
        attempt=0,
        cursor=Cursor(0, 1),
        usage=None,
        error=None,
        metadata=request.metadata,
        priority=options.level,
        run_at=None if run_at is None else run_at / 1000,
        group=options.group,
        retry_of=retry_of,
        prompt=request.preview or None,
        queue=_queue_state(None, run_at, None, lane),
        tenant=tenant,
        tokens=request.reserved_tokens,
    )


def _queue_state(
    reason: str | None, run_at_ms: int | None, retry_at_ms: int | None, lane: str | None
) -> records.QueueState:
    """Return why a generation waits, as far as its own record tells."""
    if reason is None:
        reason = "queued" if run_at_ms is None else "scheduled"
    at = run_at_ms if reason == "scheduled" else retry_at_ms
    upstreams = [unquote(name) for name in lane.split(",")] if lane else []
    return records.QueueState(None, cast(WaitingReason, reason), None if at is None else at / 1000, upstreams)


def from_fields(gid: str, fields: Sequence[bytes | None]) -> Generation:
    """Build a generation from the values of FIELDS; its `status` is empty if the meta hash does not exist."""
    m = dict(zip(FIELDS, fields, strict=True))
    waits = m["st"] == b"queued" and not m["own"]
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
        error=optional_json(m["er"]),
        metadata=optional_json(m["mt"]) or {},
        priority=int(m["pr"] or DEFAULT_PRIORITY),
        run_at=_seconds(m["ra"]),
        group=_text(m["gr"]),
        retry_of=_text(m["ro"]),
        upstream=_text(m["up"]),
        prompt=_text(m["pv"]),
        queue=_queue_state(_text(m["wr"]), _ms(m["ra"]), _ms(m["rt"]), _text(m["ln"])) if waits else None,
        tenant=_text(m["tn"]) or "",
        lane=_text(m["ln"]) or "",
        deadline=_seconds(m["qd"]),
        ticket=int(m["tk"] or 1),
        tokens=int(m["es"] or 0),
        lease=_lease(_ms(m["le"]), _ms(m["ls"])) if m["own"] and m["st"] in (b"queued", b"in_progress") else None,
        reset_reason=cast(ResetReason | None, _text(m["why"]) if int(m["k"] or 0) else None),
        finish_reason=(m["fr"] or b"").decode() or None,
        trace=(m["tp"] or b"").decode(),
    )


def _lease(end_ms: int | None, length_ms: int | None) -> records.Lease | None:
    if not end_ms or not length_ms:
        return None
    return records.Lease((end_ms - length_ms) / 1000, end_ms / 1000)


def _usage(text: bytes | None) -> Json | None:
    usage = optional_json(text)
    return bounded_usage(cast(Json, usage), len(text or b"")) if isinstance(usage, dict) else None


def bounded_usage(usage: Json, size: int) -> Json:
    """Limit a usage object of `size` bytes: one larger than USAGE_BYTES is reduced to its totals, because it is part of
    each row of a list and of each activity event."""
    if size <= USAGE_BYTES:
        return usage
    return {name: usage[name] for name in TOTALS if isinstance(usage.get(name), int)}


def _text(value: bytes | None) -> str | None:
    return value.decode() if value else None


def _ms(value: bytes | None) -> int | None:
    return int(value) if value else None


def _seconds(ms: bytes | None) -> float | None:
    return int(ms) / 1000 if ms else None


def optional_json(text: bytes | None) -> Any:
    """Decode a field that may be missing or empty; None then."""
    return decode(text) if text else None

"""One generation as callers see it: its record, and how that is read from the fields of its meta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec

from broker.completion.fold import text_of
from broker.events import FINAL_STATUSES
from broker.ids import Cursor, created_ms
from broker.request import CompletionRequest

Json = dict[str, Any]

USAGE_BYTES = 4096
"""Bytes of a `usage` object; of a longer one only the totals are shown."""
TOTALS = ("prompt_tokens", "completion_tokens", "total_tokens")
FIELDS = ("tn", "st", "md", "ca", "sa", "fa", "ea", "k", "a", "n", "us", "er", "mt", "fr", "xa", "tk", "tp")
"""Of a generation's meta (broker/store/keys.py), in the order in which they are asked for."""


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
    """The `traceparent` of the request that created it, where traces are kept."""

    @property
    def ended(self) -> bool:
        return self.status in FINAL_STATUSES

    def lacks(self, position: Cursor) -> bool:
        """Whether Redis forgot what was at this position, and goes on or has ended without it. In the same attempt its
        worker may still put it back; a queued one will begin anew anyway."""
        if position <= self.cursor:
            return False
        return self.ended or (self.status == "in_progress" and position.attempt != self.cursor.attempt)

    def summary(self) -> Json:
        """As the list shows it."""
        return {
            "id": self.id,
            "object": "generation",
            "status": self.status,
            "model": self.model,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "first_token_at": self.first_token_at,
            "ended_at": self.ended_at,
            "attempt": self.attempt,
            "cursor": str(self.cursor),
            "usage": self.usage,
            "error": self.error,
            "metadata": self.metadata,
        }

    def to_json(self) -> Json:
        return {**self.summary(), "text": self.text, "choices": list(self.choices)}

    def with_choices(self, choices: Sequence[Json]) -> Generation:
        """The same one with its merged choices, and the text of the first."""
        return replace(self, choices=choices, text=text_of(choices))


def queued(gid: str, request: CompletionRequest) -> Generation:
    """A generation as it is right after its creation."""
    created = created_ms(gid) / 1000
    cursor = Cursor(0, 1)
    return Generation(gid, "queued", request.model, created, None, None, None, 0, cursor, None, None, request.metadata)


def from_fields(gid: str, fields: Sequence[bytes | None]) -> Generation:
    """The generation whose meta holds these values of FIELDS; `status` is empty if there is none."""
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
    """What is kept and shown of a usage object of `size` bytes: it stands in each row of a list and in each event of
    the activity, so that of a long one only the totals are."""
    if size <= USAGE_BYTES:
        return usage
    return {name: usage[name] for name in TOTALS if isinstance(usage.get(name), int)}


def _seconds(ms: bytes | None) -> float | None:
    return int(ms) / 1000 if ms else None


def _json(text: bytes | None) -> Any:
    return msgspec.json.decode(text) if text else None

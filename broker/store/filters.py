"""Filters of a list of generations, and the indexes that answer them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec.json import decode

from broker.events import STATUSES
from broker.ids import ALL_TENANTS, created_ms
from broker.store import keys

IndexKey = Callable[[str], str]
"""Returns the key of an index in a shard."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that all have to be met; an empty one is met by every generation. `since_ms`: created then or later.
    `until_ms`: created before."""

    status: frozenset[str] = frozenset()
    model: str | None = None
    code: str | None = None
    group: str | None = None
    upstream: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    search: tuple[str, ...] = ()
    """Words in lower case that occur in the text of a row; one `gen_…` is the beginning of its id."""
    since_ms: int | None = None
    until_ms: int | None = None

    def checks_rows(self, tenant: str) -> bool:
        """Return whether a member of an index may fail to meet another condition."""
        further = bool(self.upstream or self.search)
        if tenant == ALL_TENANTS:
            further = further or any((self.model, self.code, self.group, self.metadata))
        return further or len(self.candidates(tenant)) > 1

    def candidates(self, tenant: str) -> list[Sequence[IndexKey]]:
        """Return the sets of indexes that each contain all matching generations."""
        found: list[Sequence[IndexKey]] = []
        if self.status and len(self.status) < len(STATUSES):
            named = sorted(self.status)
            found.append([partial(keys.index, tenant=tenant, status=status) for status in named])
        if tenant == ALL_TENANTS:  # for which there are no other indexes
            return found or [[partial(keys.index, tenant=tenant)]]
        if self.model is not None:
            found.append([partial(keys.model_index, tenant=tenant, model=self.model)])
        if self.code is not None:
            found.append([partial(keys.code_index, tenant=tenant, code=self.code)])
        if self.group is not None:
            found.append([partial(keys.group_index, tenant=tenant, name=self.group)])
        for name, value in self.metadata.items():
            found.append([partial(keys.metadata_index, tenant=tenant, name=name, value=value)])
        return found or [[partial(keys.index, tenant=tenant)]]

    def matches(self, gid: str, row: Mapping[str, bytes | None]) -> bool:
        """Return whether a generation meets the conditions. `row`: fields of its meta."""
        created = created_ms(gid)
        return (
            (not self.status or (row["st"] or b"").decode() in self.status)
            and (self.model is None or row["md"] == self.model.encode())
            and (self.group is None or row["gr"] == self.group.encode())
            and (self.since_ms is None or created >= self.since_ms)
            and (self.until_ms is None or created < self.until_ms)
            and (self.code is None or _object(row["er"]).get("code") == self.code)
            and (self.upstream is None or row["up"] == self.upstream.encode())
            and (not self.metadata or self.metadata.items() <= _object(row["mt"]).items())
            and (not self.search or self._is_found(gid, row))
        )

    def _is_found(self, gid: str, row: Mapping[str, bytes | None]) -> bool:
        names = (*(row[name] for name in ("md", "gr", "up", "pv", "tn")),)
        texts = [gid, *((name or b"").decode() for name in names), str(_object(row["er"]).get("code") or "")]
        texts += (f"{name}={value}" for name, value in _object(row["mt"]).items())
        text = "\n".join(texts).casefold()
        return all(gid.startswith(word) if word.startswith("gen_") else word in text for word in self.search)


EVERYTHING = Filters()


def _object(text: bytes | None) -> dict[str, Any]:
    return decode(text) if text else {}

"""The creation of many generations: replays are found first, the others admitted in one script and created in a few
pipelines. An item that fails does not affect the others."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from broker.errors import BrokerError, InvalidRequest, StorageUnavailable
from broker.generation import Generation, queued
from broker.ids import new_id, shard_of
from broker.queue.quotas import Admission, Quotas
from broker.request.body import CompletionRequest
from broker.settings.settings import Settings
from broker.store import bulk
from broker.store.commands import NewGeneration
from broker.store.storage_share import Stored
from broker.store.store import Created, Store

logger = logging.getLogger("tokencast.broker")

Result = Generation | BrokerError
WriteTickets = Callable[[Sequence[tuple[str, CompletionRequest]], str], Awaitable[None]]
"""Writes the tickets of new generations, given as (id, request), of a tenant."""


@dataclass(frozen=True, slots=True)
class Item:
    """A request to create a generation for. `retry_of`: the generation that it repeats."""

    request: CompletionRequest
    idempotency_key: str | None = None
    retry_of: str = ""


@dataclass(frozen=True, slots=True)
class Submission:
    """Creates generations of one tenant. `share`: maximum bytes of its stored requests; 0 = no limit. `size`: the bytes
    that a generation's request occupies."""

    store: Store
    quotas: Quotas
    settings: Settings
    tenant: str
    share: int
    size: Callable[[CompletionRequest, str], Stored]
    write_tickets: WriteTickets

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Create a generation for each item; return it, or the error, in the item's place. A failure of Redis is each
        item's error: some may have been created."""
        now = int(await self.store.clock.now() * 1000)
        named = {new_id(now, self.tenant, item.idempotency_key): item for item in items}
        try:
            results = await self._submit(named)
        except StorageUnavailable as error:
            results = dict[str, Result].fromkeys(named, error)
        return [results[gid] for gid in named]

    async def _submit(self, items: Mapping[str, Item]) -> dict[str, Result]:
        described, results = self._describe(items)
        replays = await self._replays({gid: items[gid] for gid in described})
        sizes = {gid: self.size(items[gid].request, gid) for gid in described if gid not in replays}
        admission = await self.quotas.admit_many(self.tenant, sizes, self.share)
        if admission.refusal is not None:
            for gid in list(sizes)[admission.granted :]:
                results[gid] = admission.refusal
                del sizes[gid], described[gid]
        outcomes = await bulk.create_each(self.store, list(described.values()))
        created = [gid for gid, outcome in outcomes.items() if isinstance(outcome, Created) and not outcome.replayed]
        unused = sizes.keys() - set(created)
        await self._forgo({gid: sizes[gid] for gid in unused}, admission)
        await self.write_tickets([(gid, items[gid].request) for gid in created], self.tenant)
        return {**results, **await self._results(items, outcomes)}

    def _describe(self, items: Mapping[str, Item]) -> tuple[dict[str, NewGeneration], dict[str, Result]]:
        described: dict[str, NewGeneration] = {}
        refused: dict[str, Result] = {}
        for gid, item in items.items():
            try:
                described[gid] = self.store.describe(
                    *(item.request, self.tenant, item.idempotency_key, gid),
                    lane=self.settings.lane_of(item.request.model),
                    queue_timeout=self.settings.queue_timeout,
                    retry_of=item.retry_of,
                )
            except InvalidRequest as error:
                refused[gid] = error
        return described, refused

    async def _replays(self, items: Mapping[str, Item]) -> set[str]:
        """Return the ids of the items whose idempotency key has a generation already: they cost nothing."""
        keyed = {gid: item.idempotency_key for gid, item in items.items() if item.idempotency_key is not None}
        names, shards = list(keyed.values()), [shard_of(gid) for gid in keyed]
        found = await bulk.have_records(self.store.redis, self.tenant, names, shards)
        return {gid for gid, known in zip(keyed, found, strict=True) if known}

    async def _forgo(self, unused: Mapping[str, Stored], admission: Admission) -> None:
        if not unused:
            return
        with suppress(StorageUnavailable):  # the reservations expire by themselves
            await self.quotas.cancel_admissions(self.tenant, unused, admission.counted, self.share)

    async def _results(
        self, items: Mapping[str, Item], outcomes: Mapping[str, Created | BrokerError]
    ) -> dict[str, Result]:
        repeated = {gid: one.id for gid, one in outcomes.items() if isinstance(one, Created) and one.replayed}
        known = await bulk.states(self.store.redis, list(repeated.values()), self.tenant)
        replays = dict(zip(repeated, known, strict=True))
        return {
            gid: outcome
            if isinstance(outcome, BrokerError)
            else replays[gid]
            if outcome.replayed
            else self._queued(gid, items[gid])
            for gid, outcome in outcomes.items()
        }

    def _queued(self, gid: str, item: Item) -> Generation:
        lane = self.settings.lane_of(item.request.model)
        return queued(gid, item.request, lane, self.tenant, item.retry_of or None)

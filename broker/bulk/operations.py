"""The methods of `Broker` that concern many generations, or repeat one."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

from broker import records
from broker.bulk.conditions import Conditions, make_filters
from broker.bulk.submission import Item, Result, Submission
from broker.errors import BrokerError, GenerationGone, GroupNotFound, InvalidRequest, NotEnded, StorageUnavailable
from broker.events import FINAL_STATUSES, STATUSES
from broker.generation import Generation, queued
from broker.queue.quotas import OPEN_TENANT
from broker.queue.tickets import Queue
from broker.redis.client import Script
from broker.request.body import (
    MAX_IDEMPOTENCY_KEY,
    CompletionRequest,
    check_idempotency_key,
    encode_body,
)
from broker.request.options import check_group
from broker.settings.settings import Settings
from broker.store import bulk, commands
from broker.store.data_loss import RESTORING
from broker.store.filters import Filters
from broker.store.groups import read_group
from broker.store.storage_share import Stored
from broker.store.store import Created, Store, Withdrawn, withdrawn

BATCH_LIMIT = 1000
"""Maximum generations of a batch, and of a bulk retry, cancellation or deletion."""
SLICE, SLICE_BYTES = 100, 64 * 1024
"""Requests, and their bytes, that are parsed before other tasks have a turn."""
PAGE = 100  # generations of a group that are read, and cancelled, together
WITHDRAWN_AT_ONCE = 16
PAGES = 100
"""Maximum pages that a bulk operation reads; each checks up to 10,000 generations."""
OPEN = frozenset(STATUSES) - FINAL_STATUSES


class Retried(NamedTuple):
    """The result of `retry_all`. `data`: for each match, newest first, the new generation or its error; in a dry run
    the match itself."""

    matched: int
    retried: int
    data: list[Result]
    has_more: bool


class Cancelled(NamedTuple):
    """The result of `cancel_all`. `data`: each match, newest first, after its cancellation, or its error; in a dry run
    as it was found."""

    matched: int
    cancelled: int
    data: list[Result]
    has_more: bool


class Deleted(NamedTuple):
    """The result of `delete_all`. `data`: each match, newest first, as it was found, or its error."""

    matched: int
    deleted: int
    data: list[Result]
    has_more: bool


class BulkOperations(ABC):
    """Base of `Broker`, which provides the attributes and the abstract methods."""

    settings: Settings
    store: Store
    queue: Queue

    @abstractmethod
    async def parse(self, body: bytes, tenant: str = OPEN_TENANT) -> CompletionRequest: ...

    @abstractmethod
    async def submit(
        self,
        request: CompletionRequest,
        tenant: str,
        idempotency_key: str | None,
        *,
        queue_timeout: float | None = None,
        retry_of: str = "",
    ) -> Created: ...

    @abstractmethod
    async def _withdrawn(self, gid: str, tenant: str, withdrawn: Withdrawn) -> None: ...

    @abstractmethod
    async def get(self, gid: str, tenant: str = OPEN_TENANT) -> Generation: ...

    @abstractmethod
    def _size(self, request: CompletionRequest, gid: str) -> Stored: ...

    @abstractmethod
    def _share(self, tenant: str) -> int: ...

    @abstractmethod
    async def _write_tickets(self, new: Sequence[tuple[str, CompletionRequest]], tenant: str) -> None: ...

    # --- batches ------------------------------------------------------------------------------------------

    async def enqueue_batch(
        self,
        bodies: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        tenant: str = OPEN_TENANT,
    ) -> list[Generation | BrokerError]:
        """Create up to 1,000 generations; return each one, or the error of its body, in the order of the bodies. An
        invalid body does not affect the others.

        With an idempotency key K, body i gets the key `K#i`: if the call is repeated with the same key and bodies, it
        creates only those that are missing. Raises InvalidRequest for the key, and for no bodies or too many.
        """
        check_batch(len(bodies), idempotency_key)
        parsed: list[CompletionRequest | BrokerError] = []
        for body in bodies:
            try:
                parsed.append(await self.parse(encode_body(body), tenant))
            except BrokerError as error:
                parsed.append(error)
            if len(parsed) % SLICE == 0:
                await asyncio.sleep(0)
        return await self.submit_batch(parsed, tenant, idempotency_key)

    async def submit_batch(
        self, parsed: Sequence[CompletionRequest | BrokerError], tenant: str, idempotency_key: str | None
    ) -> list[Result]:
        """As `enqueue_batch`, for validated requests, with the errors of the others in their places."""
        items = [
            one if isinstance(one, BrokerError) else Item(one, f"{idempotency_key}#{at}" if idempotency_key else None)
            for at, one in enumerate(parsed)
        ]
        return await self._submit_each(items, tenant)

    async def _submit_each(self, items: Sequence[Item | BrokerError], tenant: str) -> list[Result]:
        submission = Submission(
            *(self.store, self.queue.quotas, self.settings, tenant, self._share(tenant)),
            *(self._size, self._write_tickets),
        )
        submitted = iter(await submission.submit([item for item in items if isinstance(item, Item)]))
        return [next(submitted) if isinstance(item, Item) else item for item in items]

    # --- repeating ----------------------------------------------------------------------------------------

    async def retry(self, gid: str, *, idempotency_key: str | None = None, tenant: str = OPEN_TENANT) -> Generation:
        """Create a new generation with the request of one that has ended, with its metadata, group, priority,
        retention, error policy and webhook; `retry_of` names the old one. With the same idempotency key, return the
        same generation.

        Raises NotEnded; RequestNotKept if it was cancelled and its request was too long to be kept; otherwise as
        `enqueue` and `get`.
        """
        return (await self.submit_retry(gid, tenant, idempotency_key))[0]

    async def submit_retry(self, gid: str, tenant: str, idempotency_key: str | None) -> tuple[Generation, bool]:
        """As `retry`; also return whether the idempotency key already had a generation."""
        if not (await self.store.state(gid, tenant)).ended:
            raise NotEnded
        request = await self._repeatable(gid)
        created = await self.submit(
            request, tenant, idempotency_key, queue_timeout=self.settings.queue_timeout, retry_of=gid
        )
        if created.replayed:
            return await self.store.state(created.id, tenant), True
        return queued(created.id, request, self.settings.lane_of(request.model), tenant, gid), False

    async def _repeatable(self, gid: str) -> CompletionRequest:
        async for found in bulk.stored_requests(self.store.redis, [gid]):
            for _, request in found:
                if isinstance(request, BrokerError):
                    raise request
                self.settings.upstream_for(request.model)
                return self._with_preview(request)
        raise GenerationGone

    def _with_preview(self, request: CompletionRequest) -> CompletionRequest:
        """Return a request with the first line of its prompt, if the settings allow to store it."""
        return request if self.settings.prompt_preview else replace(request, preview="")

    async def retry_all(
        self,
        *,
        limit: int = BATCH_LIMIT,
        dry_run: bool = False,
        idempotency_key: str | None = None,
        tenant: str = OPEN_TENANT,
        **conditions: Unpack[Conditions],
    ) -> Retried:
        """Retry the newest `limit` (at most 1,000) of the generations that match; with `dry_run` only find them. The
        conditions are those of `list`, with the status `failed` by default. A generation that was already retried
        matches again.

        With an idempotency key, each generation is retried once under it, however often the call is repeated. Raises
        InvalidRequest or StorageUnavailable.
        """
        check_retry_key(idempotency_key)
        matches, more = await self._matches({"status": "failed", **conditions}, FINAL_STATUSES, limit, tenant)
        if dry_run:
            return Retried(len(matches), 0, list(matches), more)
        data: list[Result] = []
        async for found in bulk.stored_requests(self.store.redis, [one.id for one in matches]):
            items = [self._item(gid, request, idempotency_key) for gid, request in found]
            data += await self._submit_each(items, tenant)
        return Retried(len(matches), sum(isinstance(one, Generation) for one in data), data, more)

    def _item(self, gid: str, request: CompletionRequest | BrokerError, key: str | None) -> Item | BrokerError:
        if isinstance(request, BrokerError):
            return request
        try:
            self.settings.upstream_for(request.model)
        except BrokerError as error:
            return error
        return Item(self._with_preview(request), f"{key}#{gid}" if key else None, gid)

    async def _matches(
        self, conditions: Conditions, allowed: frozenset[str], limit: int, tenant: str
    ) -> tuple[list[Generation], bool]:
        """Return the newest `limit` generations that match, and whether more may match. InvalidRequest for a status
        that is not allowed."""
        filters = make_filters(**conditions)
        if not filters.status or not filters.status <= allowed:
            *first, last = (status for status in STATUSES if status in allowed)
            raise InvalidRequest(f"`status` must be {', '.join(first)} or {last}.", param="status")
        if not 1 <= limit <= BATCH_LIMIT:
            raise InvalidRequest(f"`limit` must be between 1 and {BATCH_LIMIT}.", param="limit")
        found: list[Generation] = []
        after: str | None = None
        for _ in range(PAGES):
            page, more, after = await self.store.find(tenant, filters, min(PAGE, limit - len(found)), after)
            found += page
            if not more or len(found) == limit:
                return found, more
        return found, True

    # --- ending -------------------------------------------------------------------------------------------

    async def cancel_all(
        self,
        *,
        limit: int = BATCH_LIMIT,
        dry_run: bool = False,
        tenant: str = OPEN_TENANT,
        **conditions: Unpack[Conditions],
    ) -> Cancelled:
        """Cancel the newest `limit` (at most 1,000) of the waiting and running generations that match; with `dry_run`
        only find them. The conditions are those of `list`, by default with both statuses. Raises InvalidRequest or
        StorageUnavailable."""
        matches, more = await self._matches({"status": sorted(OPEN), **conditions}, OPEN, limit, tenant)
        if dry_run:
            return Cancelled(len(matches), 0, list(matches), more)
        count, data = 0, list[Result]()
        for at in range(0, len(matches), PAGE):
            gids = [one.id for one in matches[at : at + PAGE]]
            count += len(await self._end_each(commands.CANCEL, gids, tenant))
            data += await bulk.states(self.store.redis, gids, tenant)
        return Cancelled(len(matches), count, data, more)

    async def delete_all(
        self,
        *,
        limit: int = BATCH_LIMIT,
        dry_run: bool = False,
        tenant: str = OPEN_TENANT,
        **conditions: Unpack[Conditions],
    ) -> Deleted:
        """Delete the newest `limit` (at most 1,000) of the generations that match, cancelled first if they run; with
        `dry_run` only find them. The conditions are those of `list`; `status` is required. Raises InvalidRequest or
        StorageUnavailable."""
        matches, more = await self._matches(conditions, frozenset(STATUSES), limit, tenant)
        if dry_run:
            return Deleted(len(matches), 0, list(matches), more)
        data: list[Result] = []
        for at in range(0, len(matches), PAGE):
            some = matches[at : at + PAGE]
            gone = await self._end_each(commands.DELETE, [one.id for one in some], tenant)
            data += (one if one.id in gone else GenerationGone() for one in some)
        return Deleted(len(matches), sum(isinstance(one, Generation) for one in data), data, more)

    # --- groups -------------------------------------------------------------------------------------------

    async def group(self, name: str, *, tenant: str = OPEN_TENANT) -> records.Group:
        """Return the counts and the usage of a group. Raises GroupNotFound or StorageUnavailable."""
        try:
            return await read_group(self.store.redis, tenant, check_group(name, "name"))
        except GroupNotFound:
            if await self.store.data_loss.recently_lost():
                raise StorageUnavailable(RESTORING) from None
            raise

    async def cancel_group(self, name: str, *, tenant: str = OPEN_TENANT) -> records.Group:
        """Cancel all waiting and running generations of a group; return the group. Raises as `group`."""
        await self.group(name, tenant=tenant)
        filters = Filters(group=name, status=OPEN)
        after: str | None = None
        more = True
        while more:
            page, more, after = await self.store.find(tenant, filters, PAGE, after)
            await self._end_each(commands.CANCEL, [one.id for one in page], tenant)
        return await self.group(name, tenant=tenant)

    async def _end_each(self, script: Script, gids: Sequence[str], tenant: str) -> set[str]:
        """Cancel or delete generations; return those that were not ended, or gone, already."""
        replies = await commands.end_each(self.store.redis, script, gids, tenant)
        ended = [
            (gid, withdrawn(gid, reply)) for gid, reply in zip(gids, replies, strict=True) if reply.outcome == b"OK"
        ]
        for at in range(0, len(ended), WITHDRAWN_AT_ONCE):
            some = ended[at : at + WITHDRAWN_AT_ONCE]
            await asyncio.gather(*(self._withdrawn(gid, tenant, one) for gid, one in some))
        return {gid for gid, _ in ended}


def check_batch(count: int, idempotency_key: str | None) -> None:
    """Raises InvalidRequest for the number of a batch's items, or its key."""
    if not 1 <= count <= BATCH_LIMIT:
        raise InvalidRequest(f"`generations` must have 1 to {BATCH_LIMIT} items.", param="generations")
    _check_key(idempotency_key, len(f"#{BATCH_LIMIT - 1}"))


def check_retry_key(idempotency_key: str | None) -> None:
    """Raises InvalidRequest if the key of a bulk retry is too long for the id that is appended to it."""
    _check_key(idempotency_key, len("#") + 38)


def _check_key(key: str | None, suffix: int) -> None:
    if key and len(key) > MAX_IDEMPOTENCY_KEY - suffix:
        message = f"`Idempotency-Key` can have up to {MAX_IDEMPOTENCY_KEY - suffix} characters here."
        raise InvalidRequest(message, param="idempotency-key")
    check_idempotency_key(key)

"""Creates, reads, lists, cancels and deletes generations. All access to the logs' Redis goes through this module,
except the two hot paths (the worker's appender and the hub's readers)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from broker.completion.fold import Completion, fold
from broker.errors import GenerationGone, GenerationNotFound, IdempotencyConflict, StorageUnavailable
from broker.events import Event, from_entry
from broker.generation import FIELDS, Generation, from_fields, optional_json
from broker.ids import START, Cursor, check_id, created_ms, entry_cursor, idempotency_shard, new_id, shard_of
from broker.redis.client import Redis
from broker.redis.clock import RedisClock
from broker.request.body import CompletionRequest
from broker.request.options import DEFAULT_PRIORITY, check_run_at
from broker.store import commands, keys
from broker.store.commands import CreateReply, EndReply, NewGeneration
from broker.store.data_loss import RECORD_MAY_BE_LOST, RESTORING, DataLossDetector
from broker.store.filters import EVERYTHING, Filters
from broker.store.listing import FIRST_ROWS, Listing
from broker.store.storage_share import NOTHING, Stored

Json = dict[str, Any]
WebhookOf = Callable[[str], bytes]
PAGE = 256  # entries per XRANGE, so that 5 MB logs are read in bounded pages
IN_TIME = 6.0  # seconds after which Redis no longer executes a creation; we wait five for the reply
PATIENCE = 8.0  # seconds for a creation, including its repetition after a lost reply

EVENTS_BYTES = 1024 * 1024
"""Maximum bytes of a page of events; a page that reaches it ends early, but has at least one event."""
EVENT_BYTES = 100  # bytes of an event without its data


@dataclass(frozen=True, slots=True)
class Created:
    """Result of `create`: a new generation, or the one that the idempotency key already belongs to."""

    id: str
    replayed: bool


class Withdrawn(NamedTuple):
    """Result of `cancel` and `delete`: the previous status, the bytes of the request that are no longer stored, the
    ticket's number (0 if there is none to remove), and its fields: lane, priority, tokens and order."""

    was: str
    dropped: Stored = NOTHING
    ticket: int = 0
    lane: str = ""
    priority: int = DEFAULT_PRIORITY
    tokens: int = 0
    order_ms: int = 0


class Store:
    """The generations of one Redis. `retention`: seconds, for generations that do not set their own."""

    def __init__(
        self, redis: Redis, retention: float, grace: float = 20.0, *, webhook_of: WebhookOf = lambda _: b""
    ) -> None:
        """`grace`: maximum seconds until a worker has restored a running generation after Redis has lost it.
        `webhook_of` returns the webhook, as JSON, of a tenant's generations whose request names none."""
        self.redis = redis
        self.clock = RedisClock(redis)
        self._retention = retention
        self._webhook_of = webhook_of
        self.data_loss = DataLossDetector(redis, self.clock, grace)
        self._listing = Listing(redis, FIELDS)
        self._partial: OrderedDict[str, tuple[Cursor, Completion]] = OrderedDict()

    async def make_id(self, tenant: str, idempotency_key: str | None) -> str:
        """Make the id of a new generation."""
        return new_id(int(await self.clock.now() * 1000), tenant, idempotency_key)

    async def has_idempotency_record(self, tenant: str, idempotency_key: str) -> bool:
        """Return whether the idempotency key belongs to a generation."""
        shard = idempotency_shard(tenant, idempotency_key)
        return bool(await self.redis.execute("EXISTS", keys.idempotency(shard, tenant, idempotency_key)))

    async def create(
        self,
        request: CompletionRequest,
        tenant: str,
        idempotency_key: str | None,
        gid: str | None = None,
        *,
        lane: str = "",
        queue_timeout: float | None = None,
        retry_of: str = "",
    ) -> Created:
        """Create a generation, as `describe` describes it. `gid`: an id made by `make_id`. May be repeated with the
        same id. IdempotencyConflict if the idempotency key was used with another body; StorageUnavailable if Redis is
        unavailable, or may just have lost the record of the key."""
        gid = gid or await self.make_id(tenant, idempotency_key)
        described = self.describe(
            *(request, tenant, idempotency_key, gid), lane=lane, queue_timeout=queue_timeout, retry_of=retry_of
        )
        reply = await self._create(shard_of(gid), described)
        if reply.outcome == b"OK":
            self.data_loss.observe_epoch(shard_of(gid), reply.value)
            return Created(gid, replayed=False)
        if reply.outcome == b"REPLAY":
            return Created(reply.value.decode(), replayed=True)
        raise IdempotencyConflict

    def describe(
        self,
        request: CompletionRequest,
        tenant: str,
        idempotency_key: str | None,
        gid: str,
        *,
        lane: str = "",
        queue_timeout: float | None = None,
        retry_of: str = "",
    ) -> NewGeneration:
        """Return a generation that can be created. `lane`: the upstreams that serve its model. `queue_timeout`: seconds
        for which it may wait if the request does not say. `retry_of`: the generation that it repeats. InvalidRequest if
        it is scheduled for too late a time."""
        shard = shard_of(gid)
        ttl = request.ttl_seconds if request.ttl_seconds is not None else self._retention
        options, created = request.options, created_ms(gid)
        run_at = options.run_at_ms(created)
        check_run_at(run_at, created)
        wait = queue_timeout if options.queue_timeout is None else options.queue_timeout
        return NewGeneration(
            gid,
            tenant,
            request.model,
            request.upstream,
            msgspec.json.encode(request.metadata),
            request.on_upstream_error,
            int(ttl * 1000),
            keys.idempotency(shard, tenant, idempotency_key) if idempotency_key else "",
            request.fingerprint,
            request.prompt_tokens,
            new_epoch(),
            created_data(request.model, created),
            priority=options.level,
            lane=lane,
            deadline_ms=None if wait is None else (run_at or created) + int(wait * 1000),
            run_at_ms=run_at,
            group=options.group or "",
            webhook=msgspec.json.encode(options.webhook) if options.webhook else self._webhook_of(tenant),
            retry_of=retry_of,
            tokens=request.reserved_tokens,
        )

    async def _create(self, shard: str, new: NewGeneration) -> CreateReply:
        """Run create.lua with a deadline that Redis checks: a command in the buffer of a hanging server is not executed
        long after its caller got an error. With a key that has no record, create only if no record was lost."""
        epoch = self.data_loss.trusted_epoch(shard)
        try:
            async with asyncio.timeout(PATIENCE):
                sent = time.monotonic()
                while (reply := await self._create_in_time(new, epoch)).outcome == b"UNSURE":
                    epoch = reply.value
                    if await self.data_loss.record_may_be_lost(shard, epoch or None, sent):
                        raise StorageUnavailable(RECORD_MAY_BE_LOST)
                    sent = time.monotonic()
        except TimeoutError:
            raise StorageUnavailable from None
        if reply.outcome == b"LATE":
            raise StorageUnavailable
        return reply

    async def _create_in_time(self, new: NewGeneration, epoch: bytes) -> CreateReply:
        try:
            reply = await self._create_once(new, epoch)
        except StorageUnavailable:
            # It may exist and only the reply be lost: a caller that gets an error and retries would pay for two.
            reply = await self._create_once(new, epoch)
        if reply.outcome == b"LATE":  # or Redis's clock was set since the last query
            await self.clock.sync()
            reply = await self._create_once(new, epoch)
        return reply

    async def _create_once(self, new: NewGeneration, epoch: bytes) -> CreateReply:
        latest_ms = int((self.clock.estimate() + IN_TIME) * 1000)
        return await commands.create(self.redis, new, latest_ms=latest_ms, trusted_epoch=epoch)

    async def set_traces(self, gids: Sequence[str], traceparent: str) -> None:
        """Attach generations to a trace, which their later spans become part of."""
        await commands.set_traces(self.redis, gids, traceparent)

    async def state(self, gid: str, tenant: str) -> Generation:
        """Return the generation without text and choices, in one round trip. GenerationNotFound if it is unknown or
        belongs to another tenant; GenerationGone if it was deleted or its log has expired; StorageUnavailable also
        while Redis has just come back without it."""
        check_id(gid)
        shard, sent = shard_of(gid), time.monotonic()
        fields, has_log, epoch = await self.redis.pipeline(
            [("HMGET", keys.meta(gid), *FIELDS), ("EXISTS", keys.log(gid)), ("GET", keys.epoch(shard))]
        )
        self.data_loss.observe_epoch(shard, epoch, sent)
        if fields[1] is None and await self.data_loss.generation_may_be_lost(gid, epoch):
            raise StorageUnavailable(RESTORING)
        if fields[0] != tenant.encode():
            raise GenerationNotFound
        if fields[1] == b"deleted" or not has_log:
            raise GenerationGone
        return from_fields(gid, fields)

    async def owner(self, gid: str) -> str | None:
        """Return the tenant of a generation, also of a deleted one; None if it is unknown. Raises GenerationNotFound
        for a malformed id, and StorageUnavailable."""
        tenant: bytes | None = await self.redis.execute("HGET", keys.meta(check_id(gid)), "tn")
        return None if tenant is None else tenant.decode()

    async def get(self, gid: str, tenant: str) -> Generation:
        """Return the whole generation: with its stored choices if it has ended, otherwise folded from the log so
        far."""
        generation = await self.state(gid, tenant)
        if generation.ended:
            model, stored = await self.redis.execute("HMGET", keys.meta(gid), "md", "res")
            if model is None:  # its retention has ended meanwhile
                raise GenerationGone
            if stored is not None:
                return generation.with_choices(msgspec.json.decode(stored))
        completion = await self._fold(generation)
        choices = completion.choices
        if generation.ended:
            with suppress(StorageUnavailable):  # the server is full: the next reader folds again
                kept = await commands.keep_choices(self.redis, gid, msgspec.json.encode(choices))
                self._partial.pop(gid, None)
                if not kept:
                    raise GenerationGone
        return generation.with_choices(choices)

    async def _fold(self, generation: Generation) -> Completion:
        """Fold the log incrementally: a polling dashboard only pays for new chunks. A log that no longer has the last
        folded event went back to an earlier state, and is folded anew."""
        gid = generation.id
        folded, completion = self._partial.pop(gid, (None, Completion()))
        cursor, is_same_log = folded or START, folded is None
        before = START if folded is None else Cursor(folded.attempt, folded.seq - 1)
        async for event in self.read(gid, before, generation.cursor):
            if not is_same_log:
                if event.cursor != folded:
                    break
                is_same_log = True
                continue
            # An ending from outside has its own attempt id and keeps the text.
            if event.cursor.attempt != cursor.attempt and not event.terminal:
                completion = Completion()
            fold((event,), completion)
            cursor = event.cursor
        if not is_same_log:
            return await self._fold(generation)
        self._partial[gid] = (cursor, completion)
        while len(self._partial) > 64:
            self._partial.popitem(last=False)
        return completion

    async def read(self, gid: str, after: Cursor, until: Cursor | None = None) -> AsyncIterator[Event]:
        """Iterate over the events after `after`, up to the newest or `until`, in order, page by page."""
        while True:
            events = await self.page(gid, after, PAGE, until)
            for event in events:
                yield event
            if len(events) < PAGE:
                return
            after = events[-1].cursor

    async def page(self, gid: str, after: Cursor, count: int, until: Cursor | None = None) -> list[Event]:
        """Return up to `count` events after `after`; seq -1 is the position before the first event of an attempt."""
        end = "+" if until is None else str(until)
        start = f"({after}" if after.seq >= 0 else f"{after.attempt}-0"
        reply = await self.redis.execute("XRANGE", keys.log(gid), start, end, "COUNT", count)
        return [from_entry(entry) for entry in reply]

    async def size(self, gid: str) -> int:
        """Return the approximate bytes that `get` and `request` together return."""
        meta = keys.meta(check_id(gid))
        parts = await self.redis.pipeline([("HSTRLEN", meta, "rq"), ("HSTRLEN", meta, "res"), ("HGET", meta, "by")])
        return sum(int(part or 0) for part in parts)

    async def bounded_page(self, gid: str, after: Cursor, limit: int) -> tuple[list[Event], bool]:
        """Return up to `limit` events after `after`, at least one, of about EVENTS_BYTES, and whether there are more.
        Reads a few events first, then as many as fit: one event may be a thousand times as long as another."""
        found: list[Event] = []
        size, count = 0, FIRST_ROWS
        while True:
            wanted = min(count, limit - len(found)) + 1
            events = await self.page(gid, after, wanted)
            for event in events[: wanted - 1]:
                size += EVENT_BYTES + len(event.data)
                if found and size > EVENTS_BYTES:
                    break
                found.append(event)
            more = len(found) > 0 and bool(events) and found[-1].cursor < events[-1].cursor
            if not more or len(found) >= limit or size >= EVENTS_BYTES:
                return found, more
            after = found[-1].cursor
            longest = max(EVENT_BYTES + len(event.data) for event in events)
            count = max(1, (EVENTS_BYTES - size) // longest)

    async def request(self, gid: str) -> Json | None:
        """Return the request as sent to the upstream, plus our `metadata` and `on_upstream_error` if they are set. None
        if the generation was cancelled and its request was too long to be kept (cancel.lua). GenerationGone if it was
        deleted meanwhile."""
        status, body, metadata, policy = await self.redis.execute("HMGET", keys.meta(gid), "st", "rq", "mt", "pol")
        if body is None:
            if status == b"cancelled":
                return None
            raise GenerationGone
        request = msgspec.json.decode(body)
        if labels := optional_json(metadata):
            request["metadata"] = labels
        return request if policy in (None, b"fail") else {**request, "on_upstream_error": policy.decode()}

    async def counts(self, tenant: str) -> dict[str, int]:
        """Return the number of the generations of a tenant, or of ALL_TENANTS, by status; some may have expired
        (broker/store/listing.py)."""
        return await self._listing.counts(tenant)

    async def list(
        self, tenant: str, status: str | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[list[Generation], bool]:
        """Return a page of the generations of a tenant, or of ALL_TENANTS, newest first, and whether there are more.
        `after`: id of the last one of the previous page. A page may end before `limit` (broker/store/listing.py)."""
        filters = Filters(status=frozenset({status})) if status else EVERYTHING
        return (await self.find(tenant, filters, limit, after))[:2]

    async def find(
        self, tenant: str, filters: Filters, limit: int = 20, after: str | None = None
    ) -> tuple[list[Generation], bool, str | None]:
        """As `list`, of generations that match, and the id that is the next page's `after`."""
        if after is not None:
            check_id(after)
        rows, more, last = await self._listing.page(tenant, filters, limit, after)
        return [from_fields(gid, fields) for gid, fields in rows], more, last

    async def last_attempt(self, gid: str) -> Cursor:
        """Return the position before the newest attempt of a log whose last event was written from outside."""
        newest = await self.redis.execute("XREVRANGE", keys.log(gid), "+", "-", "COUNT", 2)
        return Cursor(entry_cursor(newest[-1][0]).attempt, -1)

    async def cancel(self, gid: str, tenant: str) -> Withdrawn:
        """Cancel a generation that has not ended."""
        check_id(gid)
        return await self._outcome(gid, tenant, await commands.cancel(self.redis, gid, tenant))

    async def expire(self, gid: str, next_try: float | None = None) -> bool:
        """End a generation whose waiting has lasted too long, or will have at the next try (unix seconds)."""
        return await commands.expire(self.redis, gid, int((next_try or 0) * 1000))

    async def delete(self, gid: str, tenant: str) -> Withdrawn:
        """Delete a generation in any status."""
        check_id(gid)
        return await self._outcome(gid, tenant, await commands.delete(self.redis, gid, tenant))

    async def _outcome(self, gid: str, tenant: str, reply: EndReply) -> Withdrawn:
        if reply.outcome == b"NONE":
            await self.state(gid, tenant)  # raises the precise error
            raise GenerationNotFound
        if reply.outcome == b"GONE":
            raise GenerationGone
        return withdrawn(gid, reply)


def withdrawn(gid: str, reply: EndReply) -> Withdrawn:
    """Return the result of a script that ended a generation, or found it ended or missing."""
    if reply.outcome != b"OK":
        return Withdrawn(reply.status.decode())
    dropped = Stored(reply.dropped, created_ms(gid) + int(reply.ttl_ms))
    lane, priority, tokens, created, run_at = reply.waiting
    ticket = (lane or b"").decode(), int(priority or DEFAULT_PRIORITY), int(tokens or 0), int(run_at or created)
    return Withdrawn(reply.status.decode(), dropped, int(reply.ticket), *ticket)


def new_epoch() -> str:
    """Make the random part of a data set's name, used if ours is its first generation; Redis prefixes the time."""
    return secrets.token_hex(4)


def created_data(model: str, created: int) -> bytes:
    """Encode the data of the `created` event; `created` in ms."""
    return msgspec.json.encode({"model": model, "created_at": created / 1000})

"""The entry point to the broker, for applications and for the gateway: enqueue, follow, wait, get, list, cancel,
delete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from broker.auth.stream_tokens import Tokens
from broker.bulk.operations import BulkOperations, make_filters
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import (
    BodyTooLarge,
    BrokerError,
    DeliveryNotFound,
    GenerationGone,
    InvalidRequest,
    LimitExceeded,
    Misconfigured,
    StorageUnavailable,
)
from broker.events import RESET, STARTED, Event, GapFound, is_next
from broker.fanout.hub import Hub
from broker.generation import Generation, queued
from broker.ids import START, Cursor, created_ms, parse_cursor
from broker.queue.commands import Ticket
from broker.queue.quotas import OPEN_TENANT, TenantLimits
from broker.queue.tickets import Queue
from broker.records import DeliveryList
from broker.redis.client import Redis, connect_both
from broker.request.body import CompletionRequest, check_idempotency_key, encode_body, parse_json, parse_request
from broker.runtime.counters import Count
from broker.runtime.tracing import traceparent
from broker.settings.messages import format_errors
from broker.settings.settings import Settings
from broker.store.storage_share import NOTHING, StorageShare, Stored
from broker.store.store import PAGE, Created, Store, Withdrawn
from broker.waiting.control import QueueControl
from broker.waiting.reasons import Waiting
from broker.webhooks.outbox import Outbox

logger = logging.getLogger("tokencast.broker")

DEFAULT_LIMIT, LIST_LIMIT = 20, 100
"""Generations in a page of a list: the default and the maximum."""
TICKETS_AT_ONCE = 100  # in one pipeline
QUICK = 64 * 1024
"""Bytes of a body that is parsed in the event loop, in at most 3 ms. A larger one would delay all streams."""
_PARSER = ThreadPoolExecutor(1, "parser")
"""One thread: several would compete for the interpreter's lock, and delay the event loop."""


class Page(NamedTuple):
    """A page of a list, newest first. It can be shorter than requested although `has_more` is true. `last_id` is the
    `after` of the next page."""

    data: list[Generation]
    has_more: bool
    last_id: str | None = None


class Broker(BulkOperations, QueueControl):
    """The entry point to the broker, for applications and for the gateway. Create it with `connect`."""

    def __init__(self, streams: Redis, queue: Redis, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(streams, settings.retention, settings.lease + 5, webhook_of=settings.default_webhook)
        self.outbox = Outbox(streams)
        self.queue = Queue(queue, TenantLimits.of(settings))
        self.share = StorageShare(streams, lambda tenant: settings.quota_of(tenant).bytes)
        self.tokens = Tokens(queue, settings.secret)
        self.hub = Hub(
            self.store,
            heartbeat=settings.heartbeat,
            cache_bytes=settings.cache_bytes,
        )
        self.waiting = Waiting(self.store, self.queue, self.hub)
        self.created = Count()
        self.ended = Count()
        """Generations that this process has ended, by upstream, model, status and code."""
        self.expired = 0
        """Generations that it has ended because their waiting lasted too long."""

    async def enqueue(
        self, body: Mapping[str, Any], *, idempotency_key: str | None = None, tenant: str = OPEN_TENANT
    ) -> Generation:
        """Create a generation from a chat.completions body: `model`, `messages` and other parameters of the upstream,
        and our `metadata`, `on_upstream_error` and `ttl_seconds`. With the same idempotency key and body, return the
        same generation.

        The checks are those of `POST /v1/generations`. Raises InvalidRequest, BodyTooLarge, ModelNotFound,
        IdempotencyConflict, LimitExceeded or StorageUnavailable.
        """
        request = await self.parse(encode_body(body), tenant)
        created = await self.submit(request, tenant, idempotency_key, queue_timeout=self.settings.queue_timeout)
        return await self.store.state(created.id, tenant) if created.replayed else queued(created.id, request)

    async def parse(self, body: bytes, tenant: str = OPEN_TENANT) -> CompletionRequest:
        """Validate a tenant's body in JSON. Raises InvalidRequest, BodyTooLarge, or ModelNotFound if no upstream serves
        its model.

        A large body is parsed in a thread, so that streams continue meanwhile.
        """
        if len(body) > self.settings.max_body:
            raise BodyTooLarge
        if len(body) <= QUICK:
            request = parse_request(parse_json(body))
        else:
            loop = asyncio.get_running_loop()
            request = await loop.run_in_executor(_PARSER, lambda: parse_request(parse_json(body)))
        self.settings.upstream_for(request.model)
        self.settings.check_webhook(request.options.webhook, tenant)
        return request

    async def submit(
        self,
        request: CompletionRequest,
        tenant: str,
        idempotency_key: str | None,
        has_left: Callable[[], Awaitable[bool]] | None = None,
        *,
        queue_timeout: float | None = None,
        retry_of: str = "",
    ) -> Created:
        """Create a generation from a validated request. Once this has returned, the generation will run: if its ticket
        could not be written, the reaper writes one within ten seconds.

        `has_left` returns whether the client has disconnected; nothing is created then. `queue_timeout`: seconds for
        which the generation may wait if the request does not say; None for any time. `retry_of`: the generation that
        it repeats. Raises InvalidRequest for an invalid key, and IdempotencyConflict, LimitExceeded or
        StorageUnavailable.
        """
        key = check_idempotency_key(idempotency_key)
        gid = await self.store.make_id(tenant, key)
        counted, stored = await self._admit(gid, tenant, key, self._size(request, gid))
        try:
            if has_left is not None and await has_left():
                raise StorageUnavailable("The client disconnected before the generation was created.")
            created = await self.store.create(
                *(request, tenant, key, gid),
                lane=self.settings.lane_of(request.model),
                queue_timeout=queue_timeout,
                retry_of=retry_of,
            )
        except BrokerError:
            await self._forgo(gid, tenant, counted, stored)
            raise
        if created.replayed:
            await self._forgo(gid, tenant, counted, stored)
        else:
            await self._write_tickets([(created.id, request)], tenant)
        return created

    async def _write_tickets(self, new: Sequence[tuple[str, CompletionRequest]], tenant: str) -> None:
        """Write the tickets of new generations, given as (id, request). The reaper writes those that are missing."""
        for _, request in new:
            self.created[self.settings.label_of(request.model)] += 1
        trace = traceparent()
        for at in range(0, len(new), TICKETS_AT_ONCE):
            some = new[at : at + TICKETS_AT_ONCE]
            if trace:
                with suppress(BrokerError):
                    await self.store.set_traces(
                        [gid for gid, _ in some], trace
                    )  # before a worker can take the generations
            try:
                errors = await self.queue.offer_each([self._ticket(gid, tenant, request) for gid, request in some])
            except BrokerError as error:
                errors = [error] * len(some)
            for (gid, _), error in zip(some, errors, strict=True):
                if error is not None:
                    logger.warning("ticket of %s not written yet: %s", gid, error)

    def _ticket(self, gid: str, tenant: str, request: CompletionRequest) -> Ticket:
        created, options = created_ms(gid), request.options
        run_at = options.run_at_ms(created) or 0
        lane = self.settings.lane_of(request.model)
        return Ticket(gid, tenant, 1, lane, options.level, request.reserved_tokens, run_at or created, run_at)

    def _size(self, request: CompletionRequest, gid: str) -> Stored:
        ttl = request.ttl_seconds if request.ttl_seconds is not None else self.settings.retention
        size = len(request.upstream) + len(msgspec.json.encode(request.metadata))
        return Stored(size, created_ms(gid) + int(ttl * 1000))

    async def _admit(self, gid: str, tenant: str, idempotency_key: str | None, stored: Stored) -> tuple[str, Stored]:
        """Reserve a place in the tenant's quotas; return the key that counted it, and the bytes. Raises LimitExceeded,
        unless the idempotency key has a generation already: repeating it costs nothing."""
        try:
            return await self.queue.quotas.admit(tenant, gid, stored, self._share(tenant)), stored
        except LimitExceeded:
            if idempotency_key is None or not await self.store.has_idempotency_record(tenant, idempotency_key):
                raise
            return "", NOTHING

    def _share(self, tenant: str) -> int:
        return 0 if tenant == OPEN_TENANT else self.share.limit_of(tenant)

    async def _forgo(self, gid: str, tenant: str, counted: str, stored: Stored) -> None:
        with suppress(StorageUnavailable):  # the reservation expires by itself
            await self.queue.quotas.cancel_admission(tenant, gid, counted, stored, self._share(tenant))

    async def get(self, gid: str, tenant: str = OPEN_TENANT) -> Generation:
        """Return a generation with its text so far. Raises GenerationNotFound, GenerationGone or StorageUnavailable."""
        [generation] = await self.waiting.explain([await self.store.get(gid, tenant)])
        return generation

    async def list(
        self,
        *,
        status: str | Sequence[str] | None = None,
        model: str | None = None,
        code: str | None = None,
        group: str | None = None,
        metadata: Mapping[str, str] | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        tenant: str = OPEN_TENANT,
    ) -> Page:
        """Return up to `limit` generations without their text, newest first, after the previous page's `last_id`.

        Only those that match all filters: one of several statuses; the model; the error code; the group; all pairs of
        `metadata`; created at `since` or later, and before `until` (unix seconds). Raises InvalidRequest,
        GenerationNotFound for a malformed `after`, or StorageUnavailable."""
        filters = make_filters(
            status=status, model=model, code=code, group=group, metadata=metadata, since=since, until=until
        )
        if not 1 <= limit <= LIST_LIMIT:
            raise InvalidRequest(f"`limit` must be between 1 and {LIST_LIMIT}.", param="limit")
        found, more, last = await self.store.find(tenant, filters, limit, after)
        return Page(await self.waiting.explain(found), more, last)

    async def wait(self, gid: str, *, timeout: float | None = None, tenant: str = OPEN_TENANT) -> Generation:
        """Wait until a generation has ended; return it with its text, whether it has completed, failed or been
        cancelled.

        Raises TimeoutError after `timeout` seconds, which does not cancel the generation; otherwise as `follow`.
        """
        async with asyncio.timeout(timeout):
            while not (generation := await self.store.state(gid, tenant)).ended:
                async for _ in self.follow(gid, generation.cursor, tenant=tenant):
                    pass
            return await self.store.get(gid, tenant)

    async def deliveries(self, gid: str, tenant: str = OPEN_TENANT) -> DeliveryList:
        """Return the attempts to deliver a generation's webhook. Raises as `get`."""
        await self.store.state(gid, tenant)
        return await self.outbox.deliveries(gid)

    async def redeliver(self, gid: str, number: int, tenant: str = OPEN_TENANT) -> DeliveryList:
        """Deliver a generation's webhook again, at once, as in its attempt of this number; failures are repeated for
        another day. Raises DeliveryNotFound; otherwise as `get`."""
        await self.store.state(gid, tenant)
        if not await self.outbox.redeliver(gid, number):
            raise DeliveryNotFound
        return await self.outbox.deliveries(gid)

    async def cancel(self, gid: str, tenant: str = OPEN_TENANT) -> Generation:
        """Cancel a generation at once; one that has ended stays unchanged. Raises as `get`."""
        await self.end(gid, tenant)
        return await self.store.get(gid, tenant)

    async def end(self, gid: str, tenant: str) -> None:
        """Like `cancel`, without reading the text."""
        withdrawn = await self.store.cancel(gid, tenant)
        await self._withdraw(gid, tenant, withdrawn)
        if withdrawn.was in ("queued", "in_progress"):
            model = (await self.store.state(gid, tenant)).model
            self.ended[(*self.settings.label_of(model), "cancelled", "")] += 1

    async def expire(self, gid: str, next_try: float | None = None) -> bool:
        """End a generation whose waiting has lasted too long, or will have at the next try (unix seconds); return
        whether it has. One that runs, or may wait longer, stays unchanged."""
        expired = await self.store.expire(gid, next_try)
        if expired:
            self.expired += 1
            logger.info("%s: waited too long", gid)
        return expired

    async def _cancelled(self, gid: str, tenant: str, model: str, withdrawn: Withdrawn) -> None:
        await self._withdraw(gid, tenant, withdrawn)
        self.ended[(*self.settings.label_of(model), "cancelled", "")] += 1

    async def delete(self, gid: str, tenant: str = OPEN_TENANT) -> None:
        """Delete a generation, cancelled first if it runs; its followers receive `gone`. Raises as `get`."""
        await self._withdraw(gid, tenant, await self.store.delete(gid, tenant))

    async def _withdraw(self, gid: str, tenant: str, withdrawn: Withdrawn) -> None:
        with suppress(StorageUnavailable):  # its bytes stay counted until its retention ends
            await self.queue.quotas.release_bytes(tenant, withdrawn.dropped, self._share(tenant))
        if withdrawn.was == "queued" and withdrawn.ticket:
            _, _, number, lane, priority, tokens, order = withdrawn
            try:
                await self.queue.withdraw(Ticket(gid, tenant, number, lane, priority, tokens, order))
            except BrokerError as error:  # a worker that takes the ticket finds the generation ended
                logger.warning("ticket of %s not withdrawn: %s", gid, error.code)

    async def follow(
        self, gid: str, after: Cursor | str = START, *, tenant: str = OPEN_TENANT
    ) -> AsyncGenerator[Event, None]:
        """Yield the events after a cursor, first from the log and then live, up to and including the terminal one.

        Uses no Redis connection of its own: the process reads all followed logs together. If Redis becomes unavailable
        while no event is due, this waits, with a warning in the log, and continues after the last event. A `reset`
        event means that the text received so far is void.

        Raises InvalidCursor; GenerationNotFound; GenerationGone if it was deleted or has expired (a deletion meanwhile
        yields a `gone` event); GapFound if the events directly after the cursor were trimmed; StorageUnavailable if a
        read from Redis fails: follow again after the last event then.
        """
        position = parse_cursor(after) if isinstance(after, str) else after
        async with self.hub.open(gid, tenant) as (feed, _):
            while True:
                events = await self.store.page(gid, position, PAGE)
                for event in events:
                    if not is_next(event, position):
                        raise GapFound(position, event.cursor)
                    if event.type == STARTED and position.attempt > 0:
                        yield _FORGET
                    position = event.cursor
                    yield event
                    if event.terminal:
                        return
                if events or feed.tail == position:
                    if feed.ended and feed.tail == position:
                        if feed.gone:
                            raise GenerationGone
                        return
                    await feed.wait_beyond(position)
                    continue
                # Feed and log disagree: the log is gone or has lost events, or one of the two replies is older.
                generation = await self.store.state(gid, tenant)
                if generation.lacks(position):
                    position = START
                    yield _FORGET
                elif generation.cursor <= position:
                    if feed.ended:
                        raise StorageUnavailable("The log lost events while it was followed.")
                    await feed.wait_change()


# The log lost events that were delivered: the next events do not continue them.
_FORGET = Event(START, RESET, 0, b'{"attempt":1,"reason":"unknown_cursor"}')


class _Given(Settings):
    """Settings from arguments alone."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _settings_of(url: str | None) -> Settings:
    try:
        return _Given() if url is None else _Given(REDIS_URL=url)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise Misconfigured("; ".join(format_errors({"REDIS_URL": "url"}, error.errors()))) from None


@asynccontextmanager
async def connect(url: str | None = None, *, settings: Settings | None = None) -> AsyncGenerator[Broker, None]:
    """Return a context manager that yields a Broker on the Redis at `url`: `redis://`, `rediss://`, `unix://` or
    `redis+sentinel://`, by default `redis://127.0.0.1:6379/0`. It connects on first use.

    The environment is not read: every other setting has its default. To use the settings of a gateway or a worker, such
    as TOKENCAST_STREAMS_URL, read them with `broker.settings.loading.load_for_process` and pass them as `settings`,
    without a URL. Raises Misconfigured for an invalid URL.
    """
    if url is not None and settings is not None:
        raise TypeError("connect() takes a URL or settings, not both")
    settings = settings or _settings_of(url)
    async with connect_both(settings.logs_url, settings.redis_url) as (streams, queue):
        broker = Broker(streams, queue, settings)
        upkeep = asyncio.get_running_loop().create_task(broker.hub.run())
        try:
            yield broker
        finally:
            await cancel_and_wait([upkeep])
            await broker.hub.close()
            await broker.share.close()

"""The broker as its users hold it: enqueue, follow, get, list, cancel, delete. The gateway is one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from broker.auth.stream_tokens import Tokens
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import BodyTooLarge, BrokerError, GenerationGone, LimitExceeded, StorageUnavailable
from broker.events import RESET, STARTED, Event, is_next
from broker.fanout.hub import Hub
from broker.generation import Generation, queued
from broker.ids import START, Cursor, created_ms, parse_cursor
from broker.queue.quotas import OPEN_TENANT, TenantLimits
from broker.queue.tickets import Queue
from broker.redis.client import Redis, connect_both
from broker.request import CompletionRequest, parse_json, parse_request
from broker.runtime.counters import Count
from broker.runtime.tracing import traceparent
from broker.settings.settings import Settings
from broker.store.storage_share import NOTHING, StorageShare, Stored
from broker.store.store import PAGE, Created, Store, Withdrawn

logger = logging.getLogger("tokencast.broker")


class Broker:
    """One process's hold on the broker. Build it with `connect`."""

    def __init__(self, streams: Redis, queue: Redis, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(streams, settings.retention, settings.lease + 5)
        self.queue = Queue(queue, settings.retention, TenantLimits.of(settings))
        self.share = StorageShare(streams, settings.tenant_bytes)
        self.tokens = Tokens(queue, settings.secret)
        self.hub = Hub(
            self.store,
            heartbeat=settings.heartbeat,
            cache_bytes=settings.cache_bytes,
        )
        self.created = Count()
        self.ended = Count()
        """From here, by upstream, model, status and code."""

    async def enqueue(
        self, body: Mapping[str, Any], *, idempotency_key: str | None = None, tenant: str = OPEN_TENANT
    ) -> Generation:
        """Accepts a chat.completions body (`model`, `messages`, …, and our `metadata`, `on_upstream_error`,
        `ttl_seconds`). InvalidRequest, BodyTooLarge, IdempotencyConflict, StorageUnavailable."""
        encoded = msgspec.json.encode(body)
        if len(encoded) > self.settings.max_body:
            raise BodyTooLarge
        request = parse_request(parse_json(encoded))
        created = await self.submit(request, tenant, idempotency_key)
        return await self.store.state(created.id, tenant) if created.replayed else queued(created.id, request)

    async def submit(
        self,
        request: CompletionRequest,
        tenant: str,
        idempotency_key: str | None,
        has_left: Callable[[], Awaitable[bool]] | None = None,
    ) -> Created:
        """As `enqueue`, of a checked request. Once this returned, the generation will run: if its ticket could
        not be written, the reaper writes one within ten seconds. `has_left`: whether the caller has disconnected;
        nothing is created then."""
        gid = await self.store.name(tenant, idempotency_key)
        counted, stored = await self._admit(gid, tenant, idempotency_key, self._size(request, gid))
        try:
            if has_left is not None and await has_left():
                raise StorageUnavailable("The caller left before the generation was created.")
            created = await self.store.create(request, tenant, idempotency_key, gid)
        except BrokerError:
            await self._forgo(gid, tenant, counted, stored)
            raise
        if created.replayed:
            await self._forgo(gid, tenant, counted, stored)
        else:
            self.created[self.settings.label_of(request.model)] += 1
            if trace := traceparent():
                with suppress(BrokerError):
                    await self.store.note_trace(created.id, trace)  # before a worker can have it
            try:
                await self.queue.enqueue(created.id, tenant, 1)
            except BrokerError as error:
                logger.warning("no ticket yet for %s: %s", created.id, error.code)
        return created

    def _size(self, request: CompletionRequest, gid: str) -> Stored:
        ttl = request.ttl_seconds if request.ttl_seconds is not None else self.settings.retention
        size = len(request.upstream) + len(msgspec.json.encode(request.metadata))
        return Stored(size, created_ms(gid) + int(ttl * 1000))

    async def _admit(self, gid: str, tenant: str, idempotency_key: str | None, stored: Stored) -> tuple[str, Stored]:
        """The key that counted it, and the bytes that were counted. LimitExceeded, but not where the key stands for a
        generation already: that costs nothing."""
        try:
            return await self.queue.places.admit(tenant, gid, stored, self._share(tenant)), stored
        except LimitExceeded:
            if idempotency_key is None or not await self.store.knows(tenant, idempotency_key):
                raise
            return "", NOTHING

    def _share(self, tenant: str) -> int:
        return 0 if tenant == OPEN_TENANT else self.share.bytes

    async def _forgo(self, gid: str, tenant: str, counted: str, stored: Stored) -> None:
        with suppress(StorageUnavailable):  # the place ends by itself
            await self.queue.places.forgo(tenant, gid, counted, stored, self._share(tenant))

    async def get(self, gid: str, tenant: str = OPEN_TENANT) -> Generation:
        """With its text so far. GenerationNotFound, GenerationGone, StorageUnavailable."""
        return await self.store.get(gid, tenant)

    async def models(self) -> dict[str, str]:
        """The models that can be asked for by name → their upstream: those the settings name, and where they give
        patterns, those that the upstream told a worker."""
        told = await self.queue.models()
        models: dict[str, str] = {}
        for upstream in self.settings.all_upstreams():
            for model in (*upstream.named, *told.get(upstream.name, ())):
                if upstream.serves(model):
                    models.setdefault(model, upstream.name)
        return models

    async def cancel(self, gid: str, tenant: str = OPEN_TENANT) -> Generation:
        """Ends it as cancelled, at once; one that has ended stays as it is."""
        await self.end(gid, tenant)
        return await self.store.get(gid, tenant)

    async def end(self, gid: str, tenant: str) -> None:
        """As `cancel`, for a caller who does not wait for the text."""
        withdrawn = await self.store.cancel(gid, tenant)
        await self._withdraw(gid, tenant, withdrawn)
        if withdrawn.was in ("queued", "in_progress"):
            model = (await self.store.state(gid, tenant)).model
            self.ended[(*self.settings.label_of(model), "cancelled", "")] += 1

    async def delete(self, gid: str, tenant: str = OPEN_TENANT) -> None:
        """Forgets it; its followers get `gone`."""
        await self._withdraw(gid, tenant, await self.store.delete(gid, tenant))

    async def _withdraw(self, gid: str, tenant: str, withdrawn: Withdrawn) -> None:
        with suppress(StorageUnavailable):  # it is counted until it would have expired
            await self.queue.places.give_back(tenant, withdrawn.dropped, self._share(tenant))
        if withdrawn.was == "queued" and withdrawn.ticket:
            try:
                await self.queue.withdraw(gid, tenant, withdrawn.ticket)
            except BrokerError as error:  # a worker that takes it finds it ended
                logger.warning("ticket of %s stays: %s", gid, error.code)

    async def follow(
        self, gid: str, after: Cursor | str = START, *, tenant: str = OPEN_TENANT
    ) -> AsyncGenerator[Event, None]:
        """The events behind `after`, from the log and then live, until the terminal one. Costs no Redis
        connection of its own. A `reset` event means: forget what you showed. GenerationGone where events are
        missing behind `after`; StorageUnavailable while Redis is away: go on behind the last event then."""
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
                # The feed knows of more than there is, or of less: the log is gone, or went back, or one of us is late.
                generation = await self.store.state(gid, tenant)
                if generation.lacks(position):
                    position = START
                    yield _FORGET
                elif generation.cursor <= position:
                    if feed.ended:
                        raise StorageUnavailable("The log went back while it was followed.")
                    await feed.wait_change()


# The log went back, to before what was shown: what follows is not its continuation.
_FORGET = Event(START, RESET, 0, b'{"attempt":1,"reason":"unknown_cursor"}')


class GapFound(BrokerError):
    """The log has no event right behind the cursor: it was trimmed, or the cursor is not of this log."""

    code = "gap"

    def __init__(self, requested: Cursor, found: Cursor) -> None:
        super().__init__(f"Behind {requested} the log continues with {found}.")
        self.requested = requested
        self.found = found


@asynccontextmanager
async def connect(url: str | None = None, *, settings: Settings | None = None) -> AsyncGenerator[Broker, None]:
    """A Broker on one Redis (`redis://`, `rediss://`, `unix://`, `redis+sentinel://`), or on what the settings name.
    Connects when it is first used."""
    settings = settings or (Settings(REDIS_URL=url) if url else Settings())  # pyright: ignore[reportCallIssue]
    async with connect_both(settings.logs_url, settings.redis_url) as (streams, queue):
        broker = Broker(streams, queue, settings)
        upkeep = asyncio.get_running_loop().create_task(broker.hub.run())
        try:
            yield broker
        finally:
            await cancel_and_wait([upkeep])
            await broker.hub.close()
            await broker.share.close()

"""Generations as callers see them: created, read, listed, cancelled, deleted. All reading and writing of the
logs' Redis outside the two hot paths (the worker's appender, the hub's readers) goes through here."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from broker import keys
from broker.clock import RedisClock
from broker.completion import Completion, fold, text_of
from broker.connection import Argument, Redis, Script
from broker.errors import GenerationGone, GenerationNotFound, IdempotencyConflict, StorageUnavailable
from broker.events import FINAL_STATUSES, STATUSES, Event, from_entry
from broker.ids import SHARDS, START, Cursor, check_id, created_ms, entry_cursor, idempotency_shard, new_id, shard_of
from broker.losses import Losses
from broker.requests import CompletionRequest

Json = dict[str, Any]
PAGE = 256  # entries per XRANGE: 5 MB logs are read in bounded pieces
IN_TIME = 6.0  # seconds after which a creation is not executed any more; an answer is awaited for five
PATIENCE = 8.0  # seconds for a creation, and for the repetition of one whose reply was lost

CREATE = Script("create")
CANCEL = Script("cancel")
DELETE = Script("delete")
FORGET = Script("forget")
SETTLE = Script("settle")
TRACE = Script("trace")
UNLIST = Script("unlist")

_FIELDS = ("tn", "st", "md", "ca", "sa", "fa", "ea", "k", "a", "n", "us", "er", "mt", "fr", "xa", "tk", "tp")


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


@dataclass(frozen=True, slots=True)
class Created:
    """What `create` did: a new generation, or the one that the idempotency key already stands for."""

    id: str
    replayed: bool


class Store:
    """The generations of one Redis. `retention` (seconds) holds for those that do not ask for another."""

    def __init__(self, redis: Redis, retention: float, grace: float = 20.0) -> None:
        """`grace`: seconds that a worker may take to put a running generation back after Redis has lost it."""
        self.redis = redis
        self.clock = RedisClock(redis)
        self._retention = retention
        self.losses = Losses(redis, self.clock, grace)
        self._partial: OrderedDict[str, tuple[Cursor, Completion]] = OrderedDict()

    async def name(self, tenant: str, idempotency_key: str | None) -> str:
        """The id of a generation that is to be created."""
        return new_id(int(await self.clock.now() * 1000), tenant, idempotency_key)

    async def knows(self, tenant: str, idempotency_key: str) -> bool:
        """Whether the key stands for a generation."""
        shard = idempotency_shard(tenant, idempotency_key)
        return bool(await self.redis.execute("EXISTS", keys.idempotency(shard, tenant, idempotency_key)))

    async def create(
        self, request: CompletionRequest, tenant: str, idempotency_key: str | None, gid: str | None = None
    ) -> Created:
        """`gid`: what `name` gave it. IdempotencyConflict where the key stands for another body; StorageUnavailable
        where Redis is away. May be repeated with the same key."""
        gid = gid or await self.name(tenant, idempotency_key)
        now = created_ms(gid)
        shard = shard_of(gid)
        record = keys.idempotency(shard, tenant, idempotency_key) if idempotency_key else keys.epoch(shard)
        ttl = request.ttl_seconds if request.ttl_seconds is not None else self._retention
        lifecycle = [*lifecycle_keys(gid), keys.epoch(shard), record]
        fields: list[Argument] = [
            gid,
            tenant,
            request.model,
            request.upstream,
            msgspec.json.encode(request.metadata),
            request.on_upstream_error,
            now,
            int(ttl * 1000),
            record if idempotency_key else "",
            request.fingerprint,
            request.prompt_tokens,
            new_epoch(),
            created_data(request.model, now),
        ]
        reply = await self._create(lifecycle, fields)
        if reply[0] == b"OK":
            self.losses.observe(shard, reply[1])
            return Created(gid, replayed=False)
        if reply[0] == b"REPLAY":
            return Created(reply[1].decode(), replayed=True)
        raise IdempotencyConflict

    async def _create(self, lifecycle: Sequence[str], fields: Sequence[Argument]) -> Sequence[bytes]:
        """Runs create.lua, within a time that Redis checks: what lies in the buffer of a server that hangs is not
        executed long after its caller was refused."""
        try:
            async with asyncio.timeout(PATIENCE):
                try:
                    reply = await self._create_once(lifecycle, fields)
                except StorageUnavailable:
                    # It may exist, and only the reply be lost: a caller who is told so, and repeats, would pay for two.
                    reply = await self._create_once(lifecycle, fields)
                if reply[0] == b"LATE":  # or Redis's clock was set, since it was asked last
                    await self.clock.ask()
                    reply = await self._create_once(lifecycle, fields)
        except TimeoutError:
            raise StorageUnavailable from None
        if reply[0] == b"LATE":
            raise StorageUnavailable
        return reply

    async def _create_once(self, lifecycle: Sequence[str], fields: Sequence[Argument]) -> Sequence[bytes]:
        return await self.redis.run(CREATE, lifecycle, [*fields, int((self.clock.last() + IN_TIME) * 1000)])

    async def note_trace(self, gid: str, traceparent: str) -> None:
        """What happens to a generation from now on is a part of this trace."""
        await self.redis.run(TRACE, [keys.meta(gid)], [traceparent])

    async def state(self, gid: str, tenant: str) -> Generation:
        """The generation without text and choices: one round trip. GenerationNotFound if it is unknown or
        another tenant's, GenerationGone if it was deleted or its log has expired, StorageUnavailable also while
        Redis has just come back without it."""
        check_id(gid)
        shard = shard_of(gid)
        fields, has_log, epoch = await self.redis.pipeline(
            [("HMGET", keys.meta(gid), *_FIELDS), ("EXISTS", keys.log(gid)), ("GET", keys.epoch(shard))]
        )
        self.losses.observe(shard, epoch)
        if fields[1] is None and await self.losses.recent(gid, epoch):
            raise StorageUnavailable("Redis has just come back without its data; what was running is put back.")
        if fields[0] != tenant.encode():
            raise GenerationNotFound
        if fields[1] == b"deleted" or not has_log:
            raise GenerationGone
        return _generation(gid, fields)

    async def get(self, gid: str, tenant: str) -> Generation:
        """The whole generation: its stored choices once it ended, else folded from the log so far."""
        generation = await self.state(gid, tenant)
        if generation.ended:
            model, stored = await self.redis.execute("HMGET", keys.meta(gid), "md", "res")
            if model is None:  # its retention has ended since
                raise GenerationGone
            if stored is not None:
                return _with_choices(generation, msgspec.json.decode(stored))
        completion = await self._fold(generation)
        choices = completion.choices
        if generation.ended:
            with suppress(StorageUnavailable):  # a full server: the next reader folds again
                settled = await self.redis.run(SETTLE, lifecycle_keys(gid), [gid, msgspec.json.encode(choices)])
                self._partial.pop(gid, None)
                if settled == b"GONE":
                    raise GenerationGone
        return _with_choices(generation, choices)

    async def _fold(self, generation: Generation) -> Completion:
        """Incremental: a dashboard that polls pays for the new chunks only."""
        gid = generation.id
        cursor, completion = self._partial.pop(gid, (START, Completion()))
        async for event in self.read(gid, cursor, generation.cursor):
            # An ending from outside has an attempt of its own and leaves the text standing.
            if event.cursor.attempt != cursor.attempt and not event.terminal:
                completion = Completion()
            fold((event,), completion)
            cursor = event.cursor
        self._partial[gid] = (cursor, completion)
        while len(self._partial) > 64:
            self._partial.popitem(last=False)
        return completion

    async def read(self, gid: str, after: Cursor, until: Cursor | None = None) -> AsyncIterator[Event]:
        """The events behind `after`, up to the newest or `until`, in order, page by page."""
        while True:
            events = await self.page(gid, after, PAGE, until)
            for event in events:
                yield event
            if len(events) < PAGE:
                return
            after = events[-1].cursor

    async def page(self, gid: str, after: Cursor, count: int, until: Cursor | None = None) -> list[Event]:
        """Up to `count` events behind `after`; seq -1 stands before an attempt's first."""
        end = "+" if until is None else str(until)
        start = f"({after}" if after.seq >= 0 else f"{after.attempt}-0"
        reply = await self.redis.execute("XRANGE", keys.log(gid), start, end, "COUNT", count)
        return [from_entry(entry) for entry in reply]

    async def request(self, gid: str) -> Json:
        """What the generation was asked with, as the upstream is sent it, with our `metadata` and `on_upstream_error`
        where they say something. GenerationGone where it was deleted meanwhile."""
        body, metadata, policy = await self.redis.execute("HMGET", keys.meta(gid), "rq", "mt", "pol")
        if body is None:
            raise GenerationGone
        asked = msgspec.json.decode(body)
        if labels := _json(metadata):
            asked["metadata"] = labels
        return asked if policy in (None, b"fail") else {**asked, "on_upstream_error": policy.decode()}

    async def counts(self, tenant: str) -> dict[str, int]:
        """How many generations the tenant has, by status. Of those whose retention has ended some may count yet."""
        samples = [f"gen_{0:010}{shard}{0:022}" for shard in SHARDS]
        await self.redis.run_many(UNLIST, [(lifecycle_keys(gid), (gid, tenant)) for gid in samples])
        places = [(status, shard) for status in STATUSES for shard in SHARDS]
        found = await self.redis.pipeline([("ZCARD", keys.index(shard, tenant, status)) for status, shard in places])
        counts: dict[str, int] = {}
        for (status, _), count in zip(places, found, strict=True):
            counts[status] = counts.get(status, 0) + int(count)
        return counts

    async def last_attempt(self, gid: str) -> Cursor:
        """Right before the newest attempt of a log whose last event was written from outside."""
        newest = await self.redis.execute("XREVRANGE", keys.log(gid), "+", "-", "COUNT", 2)
        return Cursor(entry_cursor(newest[-1][0]).attempt, -1)

    async def list(
        self, tenant: str, status: str | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[list[Generation], bool]:
        """Newest first, and whether there are more. `after` is the id of the last one of the page before."""
        if after is not None:
            check_id(after)
        found: list[Generation] = []
        while True:
            page, more = await self._list_page(tenant, status, limit - len(found), after)
            found += await self._still_there(tenant, page)
            if not more or len(found) == limit:
                return found, more
            after = page[-1]  # some of the page had expired

    async def _list_page(
        self, tenant: str, status: str | None, limit: int, after: str | None
    ) -> tuple[list[str], bool]:
        newest = created_ms(after) if after else "+inf"
        ranges = await self.redis.pipeline(
            [
                ("ZREVRANGEBYSCORE", keys.index(shard, tenant, status), newest, "-inf", "LIMIT", 0, limit + 1)
                for shard in SHARDS
            ]
        )
        gids = sorted((member.decode() for members in ranges for member in members), reverse=True)
        if after:
            gids = [gid for gid in gids if gid < after]
        return gids[:limit], len(gids) > limit

    async def _still_there(self, tenant: str, gids: Sequence[str]) -> list[Generation]:
        """Those of a page that can still be read, as `state` sees it."""
        replies = await self.redis.pipeline(
            [command for gid in gids for command in (("HMGET", keys.meta(gid), *_FIELDS), ("EXISTS", keys.log(gid)))]
        )
        found = [
            (_generation(gid, fields), has_log)
            for gid, fields, has_log in zip(gids, replies[::2], replies[1::2], strict=True)
        ]
        expired = [one.id for one, has_log in found if not one.status or (one.ended and not has_log)]
        await self.redis.run_many(FORGET, [(lifecycle_keys(gid), (gid, tenant)) for gid in expired])
        return [one for one, has_log in found if has_log and one.status not in ("", "deleted")]

    async def cancel(self, gid: str, tenant: str) -> tuple[str, int]:
        """Ends it if it has not ended. Returns what it was and its ticket (0 if there is nothing to undo)."""
        check_id(gid)
        reply = await self.redis.run(CANCEL, lifecycle_keys(gid), [gid, tenant, secrets.randbelow(1024)])
        return await self._outcome(gid, tenant, reply)

    async def delete(self, gid: str, tenant: str) -> tuple[str, int]:
        """Forgets it, whatever it was doing. Returns what it was and its ticket."""
        check_id(gid)
        reply = await self.redis.run(DELETE, lifecycle_keys(gid), [gid, tenant, secrets.randbelow(1024)])
        return await self._outcome(gid, tenant, reply)

    async def _outcome(self, gid: str, tenant: str, reply: Sequence[bytes]) -> tuple[str, int]:
        if reply[0] == b"NONE":
            await self.state(gid, tenant)  # which knows why
            raise GenerationNotFound
        if reply[0] == b"GONE":
            raise GenerationGone
        return reply[1].decode(), int(reply[2]) if reply[0] == b"OK" else 0


def new_epoch() -> str:
    """The name of a data set, should ours be the first generation in it; Redis puts its time before it."""
    return secrets.token_hex(4)


def created_data(model: str, created: int) -> bytes:
    """What the `created` event says; `created` in ms."""
    return msgspec.json.encode({"model": model, "created_at": created / 1000})


def queued(gid: str, request: CompletionRequest) -> Generation:
    """A generation as it is right after its creation."""
    created = created_ms(gid) / 1000
    cursor = Cursor(0, 1)
    return Generation(gid, "queued", request.model, created, None, None, None, 0, cursor, None, None, request.metadata)


def lifecycle_keys(gid: str) -> list[str]:
    """The first five keys of every lifecycle script."""
    shard = shard_of(gid)
    return [keys.meta(gid), keys.log(gid), keys.live(shard), keys.index(shard), keys.activity(shard)]


def _generation(gid: str, fields: Sequence[bytes | None]) -> Generation:
    m = dict(zip(_FIELDS, fields, strict=True))
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
        usage=_json(m["us"]),
        error=_json(m["er"]),
        metadata=_json(m["mt"]) or {},
        finish_reason=(m["fr"] or b"").decode() or None,
        trace=(m["tp"] or b"").decode(),
    )


def _with_choices(generation: Generation, choices: Sequence[Json]) -> Generation:
    return replace(generation, choices=choices, text=text_of(list(choices)))


def _seconds(ms: bytes | None) -> float | None:
    return int(ms) / 1000 if ms else None


def _json(text: bytes | None) -> Any:
    return msgspec.json.decode(text) if text else None

"""Creates and reads many generations in a few round trips, an error in the place of each that fails."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from broker.errors import (
    BrokerError,
    GenerationGone,
    GenerationNotFound,
    IdempotencyConflict,
    RequestNotKept,
    StorageUnavailable,
)
from broker.generation import FIELDS, Generation, from_fields
from broker.ids import shard_of
from broker.redis.client import Redis
from broker.request.body import CompletionRequest
from broker.request.options import Options, WebhookOptions
from broker.store import commands, keys
from broker.store.commands import CreateReply, NewGeneration
from broker.store.data_loss import RECORD_MAY_BE_LOST
from broker.store.store import IN_TIME, PATIENCE, Created, Store

SLICE, SLICE_BYTES = 100, 1024 * 1024
"""Maximum generations, and bytes of requests, in one pipeline: encoding it takes about 3 ms."""
CONCURRENT = 4  # pipelines under way; while Redis executes one, another is encoded
ROUNDS = 4
"""Maximum executions of a creation: refused for its epoch, which may change once more, and once after a lost reply."""
READ_BYTES = 4 * 1024 * 1024
"""Maximum bytes of requests that are read at once; a single request may be longer."""


async def have_records(redis: Redis, tenant: str, idempotency_keys: Sequence[str], shards: Sequence[str]) -> list[bool]:
    """Return for each idempotency key whether it belongs to a generation."""
    pairs = zip(shards, idempotency_keys, strict=True)
    replies = await redis.pipeline([("EXISTS", keys.idempotency(shard, tenant, key)) for shard, key in pairs])
    return [bool(reply) for reply in replies]


async def create_each(store: Store, new: Sequence[NewGeneration]) -> dict[str, Created | BrokerError]:
    """Create generations; return the result of each by its id. A shard is in at most two of the pipelines."""
    turns = asyncio.Semaphore(CONCURRENT)

    async def create(some: Sequence[NewGeneration]) -> dict[str, Created | BrokerError]:
        async with turns:
            return await _create_slice(store, some)

    results = await asyncio.gather(*map(create, _slices(sorted(new, key=lambda one: shard_of(one.gid)))))
    return {gid: outcome for result in results for gid, outcome in result.items()}


def _slices(new: Sequence[NewGeneration]) -> list[Sequence[NewGeneration]]:
    slices: list[Sequence[NewGeneration]] = []
    start = size = 0
    for at, one in enumerate(new):
        if at > start and (at - start == SLICE or size + len(one.request) > SLICE_BYTES):
            slices.append(new[start:at])
            start, size = at, 0
        size += len(one.request)
    return [*slices, new[start:]] if new else []


async def _create_slice(store: Store, new: Sequence[NewGeneration]) -> dict[str, Created | BrokerError]:
    """As `Store.create`, with the same rules about repetition, for several at once."""
    found: dict[str, Created | BrokerError] = {one.gid: StorageUnavailable() for one in new}
    waiting = [(one, store.data_loss.trusted_epoch(shard_of(one.gid))) for one in new]
    try:
        async with asyncio.timeout(PATIENCE):
            for attempt in range(ROUNDS):
                sent, again = time.monotonic(), list[tuple[NewGeneration, bytes]]()
                replies = await _send(store, waiting)
                for (one, epoch), reply in zip(waiting, replies, strict=True):
                    outcome = _outcome(store, one, reply)
                    if isinstance(outcome, bytes):  # unsure: the epoch in which it is to be created
                        again.append((one, outcome))
                    elif outcome is None or (isinstance(outcome, StorageUnavailable) and attempt == 0):
                        again.append((one, epoch))
                    else:
                        found[one.gid] = outcome
                if not again:
                    break
                waiting = await _trusted(store, again, sent, found)
    except TimeoutError:
        pass
    return found


async def _send(store: Store, waiting: Sequence[tuple[NewGeneration, bytes]]) -> Sequence[CreateReply | Exception]:
    latest_ms = int((store.clock.estimate() + IN_TIME) * 1000)
    try:
        replies = await commands.create_each(store.redis, waiting, latest_ms=latest_ms)
    except StorageUnavailable as error:
        return [error] * len(waiting)
    if any(isinstance(reply, CreateReply) and reply.outcome == b"LATE" for reply in replies):
        await store.clock.sync()
    return replies


def _outcome(store: Store, one: NewGeneration, reply: CreateReply | Exception) -> Created | BrokerError | bytes | None:
    """Return the result, the epoch if the record may be lost, or None if it came too late."""
    if isinstance(reply, BrokerError):
        return reply
    if isinstance(reply, Exception):
        raise reply
    if reply.outcome == b"OK":
        store.data_loss.observe_epoch(shard_of(one.gid), reply.value)
        return Created(one.gid, replayed=False)
    if reply.outcome == b"REPLAY":
        return Created(reply.value.decode(), replayed=True)
    if reply.outcome == b"CONFLICT":
        return IdempotencyConflict()
    return reply.value if reply.outcome == b"UNSURE" else None


async def _trusted(
    store: Store,
    again: Sequence[tuple[NewGeneration, bytes]],
    sent: float,
    found: dict[str, Created | BrokerError],
) -> list[tuple[NewGeneration, bytes]]:
    """Return those whose idempotency record was not lost lately; the others have failed."""
    lost: dict[tuple[str, bytes], bool] = {}
    trusted: list[tuple[NewGeneration, bytes]] = []
    for one, epoch in again:
        state = shard_of(one.gid), epoch
        if one.record and state not in lost:
            lost[state] = await store.data_loss.record_may_be_lost(state[0], epoch or None, sent)
        if one.record and lost[state]:
            found[one.gid] = StorageUnavailable(RECORD_MAY_BE_LOST)
        else:
            trusted.append((one, epoch))
    return trusted


async def states(redis: Redis, gids: Sequence[str], tenant: str) -> list[Generation | BrokerError]:
    """Return generations without text and choices."""
    replies = await redis.pipeline(
        [command for gid in gids for command in (("HMGET", keys.meta(gid), *FIELDS), ("EXISTS", keys.log(gid)))]
    )
    found: list[Generation | BrokerError] = []
    for gid, fields, has_log in zip(gids, replies[::2], replies[1::2], strict=True):
        if fields[0] != tenant.encode():
            found.append(GenerationNotFound())
        elif fields[1] == b"deleted" or not has_log:
            found.append(GenerationGone())
        else:
            found.append(from_fields(gid, fields))
    return found


# --- requests that are sent again ---


class _Parts(msgspec.Struct):
    """What of a stored request is needed besides the request itself."""

    n: int | None = None


async def stored_requests(
    redis: Redis, gids: Sequence[str]
) -> AsyncIterator[list[tuple[str, CompletionRequest | BrokerError]]]:
    """Iterate over the requests of generations, in order, in lists of about READ_BYTES."""
    sizes = await redis.pipeline([("HSTRLEN", keys.meta(gid), "rq") for gid in gids])
    start = size = 0
    for at, length in enumerate([*sizes, READ_BYTES]):
        if at > start and (at == len(gids) or at - start == SLICE or size + length > READ_BYTES):
            yield await _read_requests(redis, gids[start:at])
            start, size = at, 0
        size += length


async def _read_requests(redis: Redis, gids: Sequence[str]) -> list[tuple[str, CompletionRequest | BrokerError]]:
    names = ("st", "rq", "md", "mt", "pol", "ttl", "pt", "pr", "gr", "wh", "es", "pv")
    replies = await redis.pipeline([("HMGET", keys.meta(gid), *names) for gid in gids])
    return [
        (gid, _request(gid, dict(zip(names, fields, strict=True)))) for gid, fields in zip(gids, replies, strict=True)
    ]


def _request(gid: str, m: dict[str, bytes | None]) -> CompletionRequest | BrokerError:
    body = m["rq"]
    if body is None:
        return RequestNotKept() if m["st"] == b"cancelled" and m["md"] is not None else GenerationGone()
    webhook = msgspec.json.decode(m["wh"], type=WebhookOptions) if m["wh"] else None
    return CompletionRequest(
        model=(m["md"] or b"").decode(),
        upstream=body,
        n=msgspec.json.decode(body, type=_Parts).n or 1,
        stream=False,
        include_usage=False,
        metadata=msgspec.json.decode(m["mt"] or b"{}"),
        on_upstream_error=(m["pol"] or b"fail").decode(),
        ttl_seconds=int(m["ttl"] or 0) / 1000,
        fingerprint=hashlib.sha256(f"retry {gid}".encode()).hexdigest(),
        prompt_tokens=int(m["pt"] or 0),
        reserved_tokens=int(m["es"] or 0),
        options=Options(
            priority=int(m["pr"]) if m["pr"] else None,
            group=m["gr"].decode() if m["gr"] else None,
            webhook=webhook,
        ),
        preview=(m["pv"] or b"").decode(),
    )

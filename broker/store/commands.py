"""The Lua scripts of the store as typed functions: the only code that knows the order of their keys and arguments.

A coroutine function runs its script and returns the reply with names. The appender sends its scripts in pipelines over
a raw connection; for it `append_command`, `finish_command`, `touch_command` and `restore_command` return the command.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.ids import created_ms, shard_of
from broker.redis.client import Argument, Redis, Script
from broker.request.options import DEFAULT_PRIORITY
from broker.store import keys

CREATE = Script("store", "create")
CANCEL, DELETE = Script("store", "cancel"), Script("store", "delete")
KEEP_CHOICES, TRACE = Script("store", "keep_choices"), Script("store", "trace")
PRUNE, UNLIST = Script("store", "prune"), Script("store", "unlist")
DUE, LOOK, REAP = Script("store", "due"), Script("store", "look"), Script("store", "reap")
CLAIM, BEGIN = Script("store", "claim"), Script("store", "begin")
DEFER, RELEASE = Script("store", "defer"), Script("store", "release")
EXPIRE, NOTE = Script("store", "expire"), Script("store", "note")
MOVE = Script("store", "move")
APPEND, FINISH = Script("store", "append"), Script("store", "finish")
TOUCH, RESTORE = Script("store", "touch"), Script("store", "restore")
APPENDER_SCRIPTS = (APPEND, FINISH, TOUCH, RESTORE)
"""Scripts that the appender loads on each of its connections."""

RawCommand = tuple[Argument, ...]


def lifecycle_keys(gid: str) -> list[str]:
    """Return the first five keys of every lifecycle script."""
    shard = shard_of(gid)
    return [keys.meta(gid), keys.log(gid), keys.live(shard), keys.index(shard), keys.activity(shard)]


def any_id(shard: str) -> str:
    """Return an id of the shard that no generation has, for scripts that check other generations."""
    return f"gen_{'0' * 10}{shard}{'0' * 22}"


def _or_empty(number: int | None) -> int | str:
    return "" if number is None else number


def _random() -> int:
    """Return the random part of an attempt id."""
    return secrets.randbelow(1024)


# --- creating ---


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """A generation to create. `record`: key of its idempotency record, empty if it has no idempotency key. `lane`: the
    upstreams that serve its model. `deadline_ms`: end of its waiting. `tokens`: tokens that a call reserves."""

    gid: str
    tenant: str
    model: str
    request: bytes
    metadata: bytes
    policy: str
    ttl_ms: int
    record: str
    fingerprint: str
    prompt_tokens: int
    new_epoch: str
    created_data: bytes
    priority: int = DEFAULT_PRIORITY
    lane: str = ""
    deadline_ms: int | None = None
    run_at_ms: int | None = None
    group: str = ""
    webhook: bytes = b""
    retry_of: str = ""
    tokens: int = 0


class CreateReply(NamedTuple):
    """Outcome OK, REPLAY, CONFLICT, LATE or UNSURE. `value`: the shard's epoch (OK, UNSURE), or the id of the
    generation that the idempotency key belongs to (REPLAY, CONFLICT)."""

    outcome: bytes
    value: bytes = b""


async def create(redis: Redis, new: NewGeneration, *, latest_ms: int, trusted_epoch: bytes) -> CreateReply:
    """Create a generation. `latest_ms`: time after which Redis must not execute it. `trusted_epoch`: epoch in which a
    missing idempotency record was not lost recently."""
    return CreateReply(*await redis.run(CREATE, *_creation(new, latest_ms, trusted_epoch)))


async def create_each(
    redis: Redis, new: Sequence[tuple[NewGeneration, bytes]], *, latest_ms: int
) -> list[CreateReply | Exception]:
    """Create several generations, each with its trusted epoch; an error is in its generation's place."""
    replies = await redis.run_each(CREATE, [_creation(one, latest_ms, epoch) for one, epoch in new])
    return [reply if isinstance(reply, Exception) else CreateReply(*reply) for reply in replies]


def _creation(new: NewGeneration, latest_ms: int, trusted_epoch: bytes) -> tuple[list[str], list[Argument]]:
    """Return the keys and arguments of create.lua."""
    epoch = keys.epoch(shard_of(new.gid))
    arguments: list[Argument] = [
        *(new.gid, new.tenant, new.model, new.request, new.metadata, new.policy, created_ms(new.gid), new.ttl_ms),
        *(new.record, new.fingerprint, new.prompt_tokens, new.new_epoch, new.created_data, latest_ms, trusted_epoch),
        *(new.priority, new.lane, _or_empty(new.deadline_ms), _or_empty(new.run_at_ms)),
        *(new.group, new.webhook, new.retry_of, new.tokens),
    ]
    return [*lifecycle_keys(new.gid), epoch, new.record or epoch], arguments


async def set_traces(redis: Redis, gids: Sequence[str], traceparent: str) -> None:
    """Store the trace of generations."""
    await redis.run_many(TRACE, [((keys.meta(gid),), (traceparent,)) for gid in gids])


# --- ending from outside, listing ---


class EndReply(NamedTuple):
    """Outcome NONE, GONE, CLOSED or OK. `status`: the current (CLOSED) or previous (OK) one. OK also returns the
    ticket, the bytes of the request that are no longer stored, the retention, and the fields that the ticket needs:
    lane, priority, tokens, created ms and scheduled ms."""

    outcome: bytes
    status: bytes = b""
    ticket: bytes | int = 0
    dropped: int = 0
    ttl_ms: bytes | int = 0
    waiting: Sequence[bytes] = ()


async def cancel(redis: Redis, gid: str, tenant: str) -> EndReply:
    """End a generation as cancelled."""
    return EndReply(*await redis.run(CANCEL, lifecycle_keys(gid), [gid, tenant, _random()]))


async def cancel_each(redis: Redis, gids: Sequence[str], tenant: str) -> list[EndReply]:
    """End generations as cancelled."""
    replies = await redis.run_many(CANCEL, [(lifecycle_keys(gid), (gid, tenant, _random())) for gid in gids])
    return [EndReply(*reply) for reply in replies]


async def delete(redis: Redis, gid: str, tenant: str) -> EndReply:
    """Delete a generation. The outcome is never CLOSED."""
    return EndReply(*await redis.run(DELETE, lifecycle_keys(gid), [gid, tenant, _random()]))


async def keep_choices(redis: Redis, gid: str, choices: bytes) -> bool:
    """Store the merged choices of a generation that was ended from outside; return False if it is gone."""
    return await redis.run(KEEP_CHOICES, lifecycle_keys(gid), [gid, choices]) != b"GONE"


async def prune(
    redis: Redis, indexes: Sequence[tuple[str, str]], tenant: str, count: int, newest: int | str
) -> list[int]:
    """Remove unreadable members from indexes of a tenant, given as (shard, key); return the number removed by each.
    Checks `count` members: from the score `newest` down, or random ones if it is empty."""
    calls = [
        ([*lifecycle_keys(gid), key], (gid, tenant, count, newest))
        for gid, key in ((any_id(shard), key) for shard, key in indexes)
    ]
    return await redis.run_many(PRUNE, calls)


async def unlist(redis: Redis, shards: Sequence[str], tenant: str) -> list[int]:
    """Remove generations that expired before they ended from a tenant's indexes; return the number for each shard."""
    return await redis.run_many(UNLIST, [(lifecycle_keys(gid), (gid, tenant)) for gid in map(any_id, shards)])


# --- the reaper ---


async def due(redis: Redis, shards: Sequence[str], limit: int, ahead_ms: int | None) -> tuple[int, list[str]]:
    """Return the server's time (unix ms) and up to `limit` due generations of each shard. `ahead_ms`: include those due
    only later than this."""
    ahead = "" if ahead_ms is None else ahead_ms
    replies = await redis.run_many(DUE, [((keys.live(shard),), (limit, ahead)) for shard in shards])
    return int(replies[0][0]), [gid.decode() for _, gids in replies for gid in gids]


class WaitingReply(NamedTuple):
    """A generation that waits. `fields`: what its ticket needs, as in ReapReply."""

    gid: str
    tenant: str
    ticket: int
    fields: Sequence[bytes | None]


async def look(redis: Redis, gids: Sequence[str]) -> list[WaitingReply]:
    """Return those of some due generations that wait; they are due again much later. One script per shard: checked one
    by one, the first looks at a hundred thousand new generations delayed those at dead workers by minutes. None of a
    shard whose script failed; `reap` finds the generation that is to blame."""
    shards = {shard: [gid for gid in gids if shard_of(gid) == shard] for shard in sorted(set(map(shard_of, gids)))}
    calls = [
        ([keys.live(shard), *(name for gid in some for name in (keys.meta(gid), keys.log(gid)))], some)
        for shard, some in shards.items()
    ]
    replies = await redis.run_each(LOOK, calls)
    found = [one for reply in replies if not isinstance(reply, Exception) for one in reply]
    return [WaitingReply(gid.decode(), tenant.decode(), int(number), rest) for gid, tenant, number, *rest in found]


class ReapReply(NamedTuple):
    """Outcome NO, LATE, REQUEUE, FAILED or EXPIRED, with the tenant for the last three. REQUEUE also returns the
    ticket's number and the fields that it needs: model, lane, priority, tokens, created ms, scheduled ms and ms before
    which it must not run again."""

    outcome: bytes
    ticket: int = 0
    tenant: str = ""
    waiting: Sequence[bytes | None] = ()


async def reap(
    redis: Redis, gid: str, *, max_attempts: int, lease_ms: int, observed_ms: int, latest_ms: int
) -> ReapReply:
    """Requeue or end a generation if its lease has expired. `observed_ms`: time for which the caller has observed the
    server without interruption. `latest_ms`: time after which Redis must not execute it."""
    arguments = [gid, _random(), max_attempts, lease_ms, observed_ms, latest_ms]
    outcome, *more = await redis.run(REAP, lifecycle_keys(gid), arguments)
    if outcome == b"REQUEUE":
        return ReapReply(outcome, int(more[0]), more[1].decode(), more[2])
    return ReapReply(outcome, tenant=more[0].decode() if more else "")


# --- the worker ---


class ClaimReply(NamedTuple):
    """Outcome NONE, GONE, CLOSED, RUNNING, LATE, EXHAUSTED or OK. OK also returns the attempt, its ordinal, the shard's
    epoch and all of the generation's meta."""

    outcome: str
    attempt: int = 0
    ordinal: int = 0
    epoch: bytes = b""
    meta: Mapping[bytes, bytes] = {}


async def claim(
    redis: Redis, gid: str, token: str, *, lease_ms: int, current_own: str, max_attempts: int
) -> ClaimReply:
    """Make the holder of `token` the owner of a new attempt. `current_own`: the owner after an upstream error; empty
    for a queued generation. May be repeated with the same token."""
    names = [*lifecycle_keys(gid), keys.epoch(shard_of(gid))]
    reply = await redis.run(CLAIM, names, [gid, token, _random(), lease_ms, current_own, max_attempts])
    outcome = reply[0].decode()
    if outcome != "OK":
        return ClaimReply(outcome)
    fields = iter(reply[4])
    return ClaimReply(outcome, int(reply[1]), int(reply[2]), reply[3], dict(zip(fields, fields, strict=True)))


async def begin(redis: Redis, gid: str, own: str, upstream: str) -> str:
    """Begin a claimed attempt. Return OK (also if it has begun), or LOST, GONE, CLOSED, FENCED. May be repeated."""
    reply = await redis.run(BEGIN, lifecycle_keys(gid), [gid, own, upstream])
    return reply[0].decode()


async def defer(
    redis: Redis,
    gid: str,
    own: str,
    *,
    reason: str = "",
    retry_at_ms: int = 0,
    data: bytes = b"",
    error: bytes = b"",
    failed: bool = False,
    not_before_ms: int = 0,
    lane: str = "",
) -> int | None:
    """Return a claimed generation whose attempt has not begun to the queue. `reason`: "" if the worker stops. Return
    its new ticket; None if `own` does not own it, or it has begun."""
    arguments: list[Argument] = [gid, own, reason, retry_at_ms, data, error, int(failed), not_before_ms, lane]
    reply = await redis.run(DEFER, lifecycle_keys(gid), arguments)
    return int(reply[1]) if reply[0] == b"OK" else None


async def release(redis: Redis, gid: str, own: str, reason: str) -> int | None:
    """Return a generation whose attempt has begun to the queue. Return its new ticket; None if `own` does not own
    it."""
    reply = await redis.run(RELEASE, lifecycle_keys(gid), [gid, own, reason])
    return int(reply[1]) if reply[0] == b"OK" else None


async def move(redis: Redis, gid: str, own: str, upstream: str) -> None:
    """Name the upstream that the running attempt of `own` calls from now on."""
    await redis.run(MOVE, lifecycle_keys(gid), [gid, own, upstream])


async def expire(redis: Redis, gid: str, next_try_ms: int = 0) -> bool:
    """End a generation whose waiting has lasted too long, or will have at the next try; return whether it has."""
    reply = await redis.run(EXPIRE, lifecycle_keys(gid), [gid, _random(), next_try_ms])
    return reply[0] == b"FAILED"


async def note(redis: Redis, gid: str, reason: str, retry_at_ms: int | None, data: bytes) -> bool:
    """Tell the readers of a waiting generation that the reason changed; return whether it has."""
    reply = await redis.run(NOTE, lifecycle_keys(gid), [gid, reason, _or_empty(retry_at_ms), data])
    return reply[0] == b"OK"


# --- the appender ---


def append_command(
    gid: str,
    own: str,
    attempt: int,
    first_seq: int,
    tokens: int,
    max_output: int,
    has_first_token: bool,
    items: Sequence[Argument],
) -> RawCommand:
    """Append `items` (type, ms, data of each event) from `first_seq` on. `tokens`: number of completion chunks so
    far."""
    # One display instead of several: this is the hot path.
    return (
        "EVALSHA",
        APPEND.sha,
        2,
        keys.meta(gid),
        keys.log(gid),
        own,
        f"{attempt}-",
        first_seq,
        tokens,
        max_output,
        "1" if has_first_token else "0",
        *items,
    )


def finish_command(
    gid: str,
    own: str,
    attempt: int,
    first_seq: int,
    *,
    status: str,
    finish_reason: str,
    usage: bytes | str,
    error: bytes | str,
    choices: bytes | str,
    tokens: int,
    items: Sequence[Argument],
) -> RawCommand:
    """Append the missing items, the last of which is the terminal event, and end the generation."""
    return (
        *("EVALSHA", FINISH.sha, 5, *lifecycle_keys(gid)),
        *(gid, own, f"{attempt}-", first_seq, status, finish_reason, usage, error, choices, tokens),
        *items,
    )


def touch_command(gid: str, own: str, lease_ms: int, *, with_live: bool, begun: bool) -> RawCommand:
    """Renew the lease. `begun`: whether the attempt has begun. `with_live`: False while a cluster has the live set on
    another server than meta and log."""
    live = (keys.live(shard_of(gid)),) if with_live else ()
    names = (keys.meta(gid), keys.log(gid), *live)
    return ("EVALSHA", TOUCH.sha, len(names), *names, gid, own, lease_ms, int(begun))


def restore_command(
    gid: str,
    own: str,
    attempt: int,
    *,
    epoch: bytes,
    new_epoch: str,
    lease_ms: int,
    known_at_ms: int,
    created_data: bytes,
    first_event: tuple[bytes, bytes],
    meta: Mapping[bytes, bytes],
) -> RawCommand:
    """Restore a running generation that Redis lost. `epoch`: the shard's at the claim. `known_at_ms`: time at which
    Redis was last known to have it. `first_event`: type and data. `meta`: all fields at the claim."""
    shard_epoch = keys.epoch(shard_of(gid))
    return (
        *("EVALSHA", RESTORE.sha, 7, *lifecycle_keys(gid), shard_epoch, meta[b"ik"].decode() or shard_epoch),
        *(gid, own, attempt, epoch, new_epoch, lease_ms, known_at_ms, created_data, *first_event),
        *(part for field in meta.items() for part in field),
    )

"""The Lua scripts of the queue as typed functions: the only code that knows the order of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from broker.ids import created_ms
from broker.redis.client import Argument, Redis, Script
from broker.store import keys

OFFER, PULL, WITHDRAW = Script("queue", "offer"), Script("queue", "pull"), Script("queue", "withdraw")
BEGUN, DONE, HOLD = Script("queue", "begun"), Script("queue", "done"), Script("queue", "hold")
POSITION, TAKE = Script("queue", "position"), Script("queue", "take")

Outcome = Literal["ok", "none", "busy", "fail", "denied"]
"""Outcome of a call for its upstream: complete; ended for another reason; refused for now; failed; key refused."""


class Ticket(NamedTuple):
    """A generation that waits for a worker. `number` counts its returns to the queue. `tokens`: the tokens that a call
    reserves. Times in unix ms; `not_before_ms`: 0 if it can run at once."""

    gid: str
    tenant: str
    number: int
    lane: str
    priority: int
    tokens: int
    order_ms: int
    not_before_ms: int = 0


class UpstreamLimits(NamedTuple):
    """Limits of an upstream as this process is configured; 0 = no limit. `weight`: 0 = upstreams in their order.
    `paused`: this process does not call it for the moment."""

    resource: str
    concurrency: int = 0
    per_minute: int = 0
    tokens_per_minute: int = 0
    adaptive: bool = True
    weight: float = 0
    paused: bool = False


class ToldLimit(NamedTuple):
    """What an upstream told about one of its rate limits: units in a window, how many of them remain, and when all of
    them are available again. None: not told."""

    limit: int | None = None
    remaining: int | None = None
    reset_ms: int | None = None
    window_ms: int | None = None


class ToldLimits(NamedTuple):
    """The limits that the headers of a response told."""

    requests: ToldLimit = ToldLimit()
    tokens: ToldLimit = ToldLimit()

    def arguments(self) -> list[Argument]:
        """Return the arguments of begun.lua and done.lua."""
        return ["" if value is None else value for told in self for value in told]


NOT_TOLD = ToldLimits()


class Pulled(NamedTuple):
    """`tickets`: names for arq. `wait_ms`: time until something may change; None if unknown. `born`: see pull.lua.
    `misplaced`: tickets to put into another lane, which they do not name yet."""

    tickets: Sequence[bytes]
    wait_ms: int | None
    born: int
    misplaced: Sequence[Ticket]


class Place(NamedTuple):
    """The place of a call: at its upstream, and among the running ones of its tenant ("" = not limited)."""

    gid: str
    resource: str
    tenant: str
    accepted: bool


async def offer(redis: Redis, ticket: Ticket, weight: float = 1.0) -> bool:
    """Add a ticket; return whether it is new. May be repeated. `weight`: that of its tenant."""
    return bool(await redis.run(OFFER, [], offer_arguments(ticket, weight)))


def offer_arguments(ticket: Ticket, weight: float = 1.0) -> list[Argument]:
    """Return the arguments of offer.lua."""
    gid, tenant, number, lane, priority, tokens, order_ms, not_before_ms = ticket
    return [gid, number, tokens, lane, priority, tenant, order_ms, not_before_ms, weight]


async def pull(
    redis: Redis,
    most: int,
    *,
    lease_ms: int,
    born: str,
    tenant_running: int,
    other_tenants: bytes,
    ageing_ms: int,
    upstreams: Sequence[UpstreamLimits],
) -> Pulled:
    """Take up to `most` tickets that can run now. `born`: the value of the last call, "" for the first one.
    `other_tenants`: JSON of the tenants with limits of their own."""
    parts: list[Argument] = [most, lease_ms, born, tenant_running, other_tenants, ageing_ms]
    for one in upstreams:
        most_at_once = -1 if one.paused else one.concurrency
        parts += (one.resource, most_at_once, one.per_minute, one.tokens_per_minute, int(one.adaptive), one.weight)
    tickets, wait, since, misplaced = await redis.run(PULL, [], parts)
    return Pulled(tickets, int(wait) if int(wait) >= 0 else None, int(since), [_misplaced(*one) for one in misplaced])


def _misplaced(member: bytes, tenant: bytes, priority: int) -> Ticket:
    gid, number, tokens = member.decode().split(".")
    return Ticket(gid, tenant.decode(), int(number), "", priority, int(tokens), created_ms(gid))


async def begun(redis: Redis, gid: str, resource: str, *, reserved: int = 0, told: ToldLimits = NOT_TOLD) -> None:
    """Record that the upstream accepted the call, and what it told. `reserved`: tokens of the call."""
    await redis.run(BEGUN, [], [gid, resource, reserved, *told.arguments()])


class Done(NamedTuple):
    """Times in unix ms of the queue's Redis; `accepted_ms`: of the last accepted call of this upstream, 0 if none."""

    accepted_ms: int
    now_ms: int
    circuit_open: bool


async def done(
    redis: Redis,
    gid: str,
    tenant: str,
    resource: str,
    outcome: Outcome,
    *,
    worker: str,
    retry_ms: int = -1,
    age_ms: int = 0,
    reserved: int = 0,
    used: int | None = None,
    told: ToldLimits = NOT_TOLD,
) -> Done:
    """Free the places of a call. `retry_ms`: when the upstream can be called again (-1 = not said). `age_ms`: time
    since the call was sent. `reserved`, `used`: tokens. `told`: limits in the headers of a refusal."""
    arguments: list[Argument] = [gid, tenant, resource, outcome, retry_ms, age_ms, reserved]
    arguments += ["" if used is None else used, worker, *told.arguments()]
    accepted, now, is_open = await redis.run(DONE, [], arguments)
    return Done(int(accepted), int(now), bool(is_open))


async def hold(redis: Redis, places: Sequence[Place], *, lease_ms: int, born: str) -> int:
    """Renew places, and recreate lost ones; return `born`."""
    parts: list[Argument] = [lease_ms, born]
    for place in places:
        parts += (place.gid, place.resource, place.tenant, int(place.accepted))
    return int(await redis.run(HOLD, [], parts))


class Taken(NamedTuple):
    """`resource`: the upstream at which there is a place, "" if none takes a call. `wait_ms`: time until one may; None
    if unknown. `born`: see pull.lua."""

    resource: str
    wait_ms: int | None
    born: int


async def take(
    redis: Redis,
    gid: str,
    resource: str,
    upstreams: Sequence[UpstreamLimits],
    *,
    lease_ms: int,
    born: str,
    tokens: int,
) -> Taken:
    """Take a place for another call of a running generation, at the first of `upstreams` that takes it. `resource`: the
    upstream at which it has a place, "" for none; it ends if another one takes the call."""
    parts: list[Argument] = [gid, resource, lease_ms, born, tokens]
    for one in upstreams:
        parts += (one.resource, one.concurrency, one.per_minute, one.tokens_per_minute, int(one.adaptive))
    taken, wait, since = await redis.run(TAKE, [], parts)
    return Taken(taken.decode(), int(wait) if int(wait) >= 0 else None, int(since))


async def has_place(redis: Redis, gid: str, resource: str) -> bool:
    """Return whether a generation has a place at an upstream."""
    return await redis.execute("ZSCORE", keys.places(resource), gid) is not None


async def withdraw(redis: Redis, ticket: Ticket) -> bool:
    """Remove a ticket; return whether it was there."""
    gid, tenant, number, lane, priority, tokens, order_ms, _ = ticket
    return bool(await redis.run(WITHDRAW, [], [gid, number, tokens, lane, priority, tenant, order_ms]))


async def positions(redis: Redis, tickets: Sequence[Ticket]) -> list[int | None]:
    """Return the positions in their lanes, from 1; None for one that does not wait there, or whose position cannot be
    told cheaply."""
    calls = [
        ((), (ticket.gid, ticket.number, ticket.tokens, ticket.lane, ticket.priority, ticket.tenant))
        for ticket in tickets
    ]
    return [int(found) if int(found) > 0 else None for found in await redis.run_many(POSITION, calls)]

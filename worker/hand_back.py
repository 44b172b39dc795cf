"""Returns a generation to the queue whose call was refused or failed before the first token: waiting is not failing.

The upstream's state (busy, circuit) holds back everybody; a failed call holds back only its own generation, for longer
each time, because the request itself may be the cause.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.errors import StorageUnavailable
from broker.queue.commands import Done, Outcome, Ticket
from broker.queue.tickets import Queue
from broker.redis.client import Redis
from broker.redis.clock import RedisClock
from broker.store import commands
from worker.attempt import Attempt
from worker.claims import Claim
from worker.places import Places
from worker.upstream.errors import UpstreamError

Json = dict[str, Any]
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds until a generation whose call failed is called again
BUSY_WAIT = 0.25  # seconds until an upstream that refused without Retry-After is called again
PATIENT_RETURNS = 3
"""Refusals of a generation after which it waits longer and longer behind the others."""
POISON = 5
"""Failed calls of a generation after which the request is to blame, if the upstream accepted others meanwhile."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What follows from a refused call. Times in seconds."""

    outcome: Outcome
    reason: str
    retry_after: float | None
    delay: float
    """Time before which the generation must not be called again."""
    wait: float
    """Time until the next try, as readers are told."""
    lane: str


def outcome_of(failure: UpstreamError) -> Outcome:
    """Return the outcome of a call for its upstream."""
    if failure.outcome in ("busy", "denied"):
        return failure.outcome
    return "fail" if failure.retryable else "none"


class HandBack:
    """Decides whether a generation goes back to the queue, and returns it there."""

    def __init__(self, logs: Redis, queue: Queue, places: Places) -> None:
        self._logs = logs
        self._queue = queue
        self._places = places
        self._clock = RedisClock(logs)

    async def refuse(self, attempt: Attempt, failure: UpstreamError) -> bool:
        """Report a call that failed before the first token, and return its generation to the queue. False if it has to
        fail now: its waiting would end first, or its request is to blame."""
        claim = attempt.claim
        refusal = _refusal(claim, failure)
        done = await self._places.end(
            claim.gid, refusal.outcome, retry_after=refusal.retry_after, limits=failure.rate_limits
        )
        now = await self._clock.now()
        if refusal.outcome == "none" or _is_over(claim, now + refusal.wait) or _is_poison(claim, failure, done):
            return False
        if attempt.begun:
            number = await commands.release(self._logs, claim.gid, claim.own, "upstream_error")
        else:
            number = await self._defer(claim, failure, refusal, now)
        if number is not None:
            await self._offer(claim, number, refusal.lane, int((now + refusal.delay) * 1000) if refusal.delay else 0)
        return True

    async def _defer(self, claim: Claim, failure: UpstreamError, refusal: Refusal, now: float) -> int | None:
        retry_at = round(now + refusal.wait, 3)
        return await commands.defer(
            self._logs,
            claim.gid,
            claim.own,
            reason=refusal.reason,
            retry_at_ms=int(retry_at * 1000),
            data=msgspec.json.encode({"reason": refusal.reason, "retry_at": retry_at}),
            error=msgspec.json.encode(failure.to_json()),
            failed=refusal.outcome == "fail",
            not_before_ms=int((now + refusal.delay) * 1000) if refusal.delay else 0,
            lane=refusal.lane,
        )

    async def give_up(self, claim: Claim) -> None:
        """Return a running generation to the queue that found no upstream for its next call. It starts again."""
        number = await commands.release(self._logs, claim.gid, claim.own, "upstream_error")
        await self._places.end(claim.gid, "none")
        if number is not None:
            await self._offer(claim, number, claim.lane, 0)

    async def stop(self, claim: Claim) -> bool:
        """Return a running generation to the queue because the worker stops; return whether it was ours. Raises
        StorageUnavailable."""
        number = await commands.release(self._logs, claim.gid, claim.own, "worker_stopped")
        if number is None:  # it has not begun
            number = await commands.defer(self._logs, claim.gid, claim.own)
        await self._places.end(claim.gid, "none")
        if number is not None:
            await self._queue.offer(_ticket(claim, number, claim.lane, 0))
        return number is not None

    async def _offer(self, claim: Claim, number: int, lane: str, not_before_ms: int) -> None:
        with suppress(StorageUnavailable):  # the reaper does it in five seconds
            await self._queue.offer(_ticket(claim, number, lane, not_before_ms))


def _ticket(claim: Claim, number: int, lane: str, not_before_ms: int) -> Ticket:
    return Ticket(
        claim.gid, claim.tenant, number, lane, claim.priority, claim.reserved_tokens, claim.order_ms, not_before_ms
    )


def _refusal(claim: Claim, failure: UpstreamError) -> Refusal:
    outcome = outcome_of(failure)
    others = [one for one in claim.lane.split(",") if one != claim.resource]
    if outcome == "busy":
        retry_after = failure.retry_after
        wait = BUSY_WAIT * random.uniform(0.75, 1.25) if retry_after is None else retry_after
        # Any other waiting generation is tried first, for longer each time: the refusal may be about this request,
        # such as one that is larger than the upstream's rate, and it would otherwise be called again and again.
        behind = min(BUSY_WAIT * 2 ** min(max(0, claim.returns - PATIENT_RETURNS), 10), LONGEST_DELAY)
        if others:  # nobody calls this one meanwhile, and another one may have room
            behind = behind if claim.returns >= len(others) else 0.0
            return Refusal(outcome, "upstream_busy", wait, behind, behind, claim.lane)
        return Refusal(outcome, "upstream_busy", wait, wait + behind, wait + behind, claim.lane)
    if outcome == "denied" and not others:  # waiting does not help, and the next caller is to see it too
        outcome = "none"
    if others and claim.failures < len(others):  # the next upstream is asked at once
        return Refusal(outcome, "upstream_down", None, 0.0, 0.0, ",".join([*others, claim.resource]))
    delay = max(failure.retry_after or 0.0, min(FIRST_DELAY * 2 ** min(claim.failures, 10), LONGEST_DELAY))
    return Refusal(outcome, "upstream_down", None, delay, delay, claim.lane)


def _is_over(claim: Claim, retry_at: float) -> bool:
    return claim.deadline is not None and retry_at > claim.deadline


def _is_poison(claim: Claim, failure: UpstreamError, done: Done | None) -> bool:
    """Return whether the request is to blame: it failed often, while the upstream accepted others."""
    return (
        failure.code in ("upstream_error", "upstream_timeout")
        and done is not None
        and claim.failures + 1 >= POISON
        and done.accepted_ms > claim.first_failure_ms > 0
    )

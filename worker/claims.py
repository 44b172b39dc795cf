"""Claims a generation for this worker, and releases it again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.concurrency.backoff import Backoff
from broker.errors import StorageUnavailable
from broker.events import RESET, STARTED
from broker.redis.client import Redis
from broker.settings.settings import Settings
from broker.store import commands
from broker.store.store import created_data

CLAIM_TIMEOUT = 60.0  # seconds; default time for repeating a claim
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write one attempt of a generation."""

    gid: str
    attempt: int
    own: str
    """`<attempt>.<token>`: the owner that the scripts compare."""
    ordinal: int
    epoch: bytes
    meta: Mapping[bytes, bytes]
    """The generation's complete meta at the claim, from which it can be restored."""

    @property
    def created(self) -> bytes:
        """Data of the generation's `created` event, as it was written."""
        return created_data(self.model, int(self.meta[b"ca"]))

    @property
    def first_event(self) -> tuple[bytes, bytes]:
        """Type and data of the attempt's first event, as claim.lua wrote it."""
        if self.ordinal == 1:
            return STARTED, b'{"attempt":1}'
        reason = self.meta.get(b"why") or b"worker_lost"
        return RESET, msgspec.json.encode({"attempt": self.ordinal, "reason": reason.decode()})

    @property
    def tenant(self) -> str:
        return self.meta[b"tn"].decode()

    @property
    def model(self) -> str:
        return self.meta[b"md"].decode()

    @property
    def body(self) -> Json:
        """The request body for the upstream."""
        return msgspec.json.decode(self.meta[b"rq"])

    @property
    def trace(self) -> str:
        """The `traceparent` of the generation's spans."""
        return self.meta.get(b"tp", b"").decode()

    @property
    def claimed_at(self) -> float:
        """Time of the claim, in unix seconds of Redis's clock."""
        return (self.attempt >> 10) / 1000

    @property
    def created_at(self) -> float:
        return int(self.meta[b"ca"]) / 1000

    @property
    def restarts_on_error(self) -> bool:
        """Whether an upstream error after the first token starts another attempt."""
        return self.meta[b"pol"] == b"restart"

    @property
    def prompt_tokens(self) -> int:
        """Estimated number of prompt tokens."""
        return int(self.meta.get(b"pt") or 0)


async def claim(
    redis: Redis,
    gid: str,
    settings: Settings,
    own: str = "",
    *,
    timeout: float = CLAIM_TIMEOUT,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Claim | str:
    """Claim a new attempt of a queued generation, or, with `own`, of a generation that the caller is running.

    Return the claim, or the reason for its refusal: NONE, GONE, CLOSED, RUNNING (another worker has it), EXHAUSTED (its
    attempts are used up; the generation has ended, unless the caller is running it). The call is repeated with the same
    token until Redis responds: a server that hung may execute the claim long after its connection was closed, and the
    attempt would not run until its lease expires. Raises StorageUnavailable after `timeout` seconds, or as soon as
    `is_wanted` returns False.
    """
    token = secrets.token_hex(8)
    lease_ms, most = int(settings.lease * 1000), settings.max_attempts
    backoff, deadline = Backoff(0.1, 1.0), time.monotonic() + timeout
    while True:
        try:
            reply = await commands.claim(redis, gid, token, lease_ms=lease_ms, current_own=own, max_attempts=most)
            break
        except StorageUnavailable:
            await backoff.wait()
            if time.monotonic() > deadline or not is_wanted():
                raise
    if reply.outcome != "OK":
        return reply.outcome
    return Claim(gid, reply.attempt, f"{reply.attempt}.{token}", reply.ordinal, reply.epoch, reply.meta)


async def release(redis: Redis, claim: Claim) -> int | None:
    """Release a running generation without using up an attempt. Return the number of its new ticket, None if the
    generation was not ours."""
    return await commands.release(redis, claim.gid, claim.own)


async def announce_waiting(redis: Redis, claim: Claim) -> None:
    """Announce on the activity feed that the generation waits; its own readers see the event in its log."""
    await commands.announce_waiting(redis, claim.gid, claim.own)

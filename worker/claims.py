"""Taking a generation, and giving it back."""

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

PATIENCE = 60.0  # seconds
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write one attempt of a generation."""

    gid: str
    attempt: int
    own: str
    """`<attempt>.<token>`: what the scripts compare."""
    ordinal: int
    epoch: bytes
    meta: Mapping[bytes, bytes]
    """All of the generation's meta at the claim, so that it could be rebuilt from here."""

    @property
    def created(self) -> bytes:
        """The data of the generation's `created` event, as it was."""
        return created_data(self.model, int(self.meta[b"ca"]))

    @property
    def first_event(self) -> tuple[bytes, bytes]:
        """Type and data of the attempt's own first event, as claim.lua wrote it."""
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
        """The request as the upstream is to have it."""
        return msgspec.json.decode(self.meta[b"rq"])

    @property
    def trace(self) -> str:
        """The `traceparent` that its spans are children of."""
        return self.meta.get(b"tp", b"").decode()

    @property
    def began(self) -> float:
        """When it was claimed, unix seconds by Redis's clock."""
        return (self.attempt >> 10) / 1000

    @property
    def created_at(self) -> float:
        return int(self.meta[b"ca"]) / 1000

    @property
    def restarts(self) -> bool:
        """Whether an upstream error after the first token starts it again."""
        return self.meta[b"pol"] == b"restart"

    @property
    def prompt_tokens(self) -> int:
        """Estimated."""
        return int(self.meta.get(b"pt") or 0)


async def claim(
    redis: Redis,
    gid: str,
    settings: Settings,
    own: str = "",
    *,
    patience: float = PATIENCE,
    wanted: Callable[[], bool] = lambda: True,
) -> Claim | str:
    """A new attempt of a queued generation, or with `own` of the caller's own; or why not: NONE, GONE, CLOSED,
    RUNNING (somebody has it), EXHAUSTED (it was started too often, and has ended unless it is the caller's own).

    Sent again until Redis answers, under the same token: a server that hung may execute it long after its connection
    was given up, and nobody would run the attempt until its lease is over. StorageUnavailable after `patience` seconds,
    or once it is not `wanted` any more.
    """
    token = secrets.token_hex(8)
    lease_ms, most = int(settings.lease * 1000), settings.max_attempts
    backoff, until = Backoff(0.1, 1.0), time.monotonic() + patience
    while True:
        try:
            reply = await commands.claim(redis, gid, token, lease_ms=lease_ms, current_own=own, max_attempts=most)
            break
        except StorageUnavailable:
            await backoff.wait()
            if time.monotonic() > until or not wanted():
                raise
    if reply.outcome != "OK":
        return reply.outcome
    return Claim(gid, reply.attempt, f"{reply.attempt}.{token}", reply.ordinal, reply.epoch, reply.meta)


async def release(redis: Redis, claim: Claim) -> int | None:
    """Hands a running generation back, no budget burnt. The number of its new ticket, None if it was not ours."""
    return await commands.release(redis, claim.gid, claim.own)


async def announce_waiting(redis: Redis, claim: Claim) -> None:
    """To who watches all generations; those who follow this one learn it from its log."""
    await commands.announce_waiting(redis, claim.gid, claim.own)

"""Claims a generation for this worker."""

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
from broker.request.options import DEFAULT_PRIORITY
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
    """The generation's complete meta, as it is once the attempt has begun: it can be restored from this."""
    resource: str
    """The upstream to call, as the queue names it."""
    upstream: str
    """Its name in the settings."""
    continued: int = 0
    """Number of its calls that went on after the text of another one, in this worker."""

    @property
    def created(self) -> bytes:
        """Data of the generation's `created` event, as it was written."""
        return created_data(self.model, int(self.meta[b"ca"]))

    @property
    def first_event(self) -> tuple[bytes, bytes]:
        """Type and data of the attempt's first event, as begin.lua writes it."""
        if self.ordinal == 1:
            return STARTED, msgspec.json.encode({"attempt": 1, "upstream": self.upstream})
        reason = (self.meta.get(b"why") or b"worker_lost").decode()
        return RESET, msgspec.json.encode({"attempt": self.ordinal, "reason": reason, "upstream": self.upstream})

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
    def lane(self) -> str:
        """The upstreams that serve its model, in the order in which they are asked."""
        return self.meta[b"ln"].decode()

    @property
    def priority(self) -> int:
        return int(self.meta.get(b"pr") or DEFAULT_PRIORITY)

    @property
    def reserved_tokens(self) -> int:
        """Tokens that a call reserves of the upstream's rate."""
        return int(self.meta.get(b"es") or 0)

    @property
    def order_ms(self) -> int:
        """Time by which it is ordered among those of its tenant, in unix ms."""
        return int(self.meta.get(b"ra") or self.meta[b"ca"])

    @property
    def deadline(self) -> float | None:
        """End of its waiting, in unix seconds."""
        return int(self.meta[b"qd"]) / 1000 if self.meta.get(b"qd") else None

    @property
    def returns(self) -> int:
        """How often it has gone back to the queue."""
        return int(self.meta.get(b"tk") or 1) - 1

    @property
    def failures(self) -> int:
        """Number of its calls that failed before the first token."""
        return int(self.meta.get(b"nb") or 0)

    @property
    def first_failure_ms(self) -> int:
        """Time of the first of these, in unix ms; 0 if there is none."""
        return int(self.meta.get(b"fb") or 0)

    @property
    def restarts_on_error(self) -> bool:
        """Whether an upstream error after the first token starts another attempt."""
        return self.meta[b"pol"] == b"restart"

    @property
    def continues_on_error(self) -> bool:
        """Whether another call goes on after the text of one that broke off."""
        return self.meta[b"pol"] == b"continue"

    @property
    def prompt_tokens(self) -> int:
        """Estimated number of prompt tokens."""
        return int(self.meta.get(b"pt") or 0)


async def claim(
    redis: Redis,
    gid: str,
    settings: Settings,
    resource: str,
    own: str = "",
    *,
    timeout: float = CLAIM_TIMEOUT,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Claim | str:
    """Claim a new attempt of a queued generation, or, with `own`, of a generation that the caller is running.
    `resource`: the upstream to call.

    Return the claim, or the reason for its refusal: NONE, GONE, CLOSED, RUNNING (another worker has it), LATE (its
    waiting has ended), EXHAUSTED (its attempts are used up; the generation has ended, unless the caller is running it).
    The call is repeated with the same token until Redis responds: a server that hung may execute the claim long after
    its connection was closed, and the attempt would not run until its lease expires. Raises StorageUnavailable after
    `timeout` seconds, or as soon as `is_wanted` returns False."""
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
    own = f"{reply.attempt}.{token}"
    upstream = settings.name_of(resource)
    meta = {**reply.meta, **_begun_fields(reply.attempt, reply.ordinal, own, upstream)}
    if reply.ordinal == 1:
        meta[b"sa"] = b"%d" % (reply.attempt >> 10)
    lane = settings.current_lane(meta.get(b"ln", b"").decode(), meta[b"md"].decode())
    if resource not in lane.split(","):  # this worker's settings are not those of the process that enqueued it
        lane = resource
    meta[b"ln"] = lane.encode()
    return Claim(gid, reply.attempt, own, reply.ordinal, reply.epoch, meta, resource, upstream)


def _begun_fields(attempt: int, ordinal: int, own: str, upstream: str) -> dict[bytes, bytes]:
    """Return the fields that begin.lua sets."""
    fields = {"st": "in_progress", "own": own, "a": attempt, "n": 0, "k": ordinal, "by": 0, "ct": 0, "fa": ""}
    fields |= {"up": upstream, "wr": "", "rt": ""}
    return {name.encode(): str(value).encode() for name, value in fields.items()}

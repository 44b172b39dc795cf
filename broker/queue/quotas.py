"""Quotas of a tenant: running generations, waiting generations, creations per minute, and bytes of stored requests.

All of it is in the queue's Redis and may be lost as a whole. A *reservation* has an end: one among the running
generations lasts a lease, and the worker renews it; one among the waiting lasts for several sweeps of the reaper, each
of which renews it. A ticket that reaches the head while its tenant is at the limit is *parked* until a reservation is
free, so that the other tickets pass it. Without API keys all generations belong to `OPEN_TENANT`, which has no limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from broker.errors import LimitExceeded
from broker.redis.client import Command, Redis, Script
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.storage_share import NOTHING, Stored

ADMIT = Script("queue", "quota_admit")
ACQUIRE = Script("queue", "quota_acquire")
RELEASE = Script("queue", "quota_release")
RENEW = Script("queue", "quota_renew")
OPEN_TENANT = "default"
"""The tenant of all generations if no API keys are set."""
WAITING_MS = 120_000
"""Lifetime of a reservation among the waiting; the reaper renews it every 30 s."""
LATER = 60  # seconds; Retry-After if the tenant's stored bytes are at the limit
SOON = 5  # seconds; Retry-After if the tenant's queue is full


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of a tenant: concurrent generations and creations per minute; 0 = no limit. `lease`: seconds."""

    running: int = 0
    queued: int = 0
    per_minute: int = 0
    lease: float = 15.0

    @classmethod
    def of(cls, settings: Settings) -> TenantLimits:
        return cls(settings.tenant_running, settings.tenant_queued, settings.tenant_per_minute, settings.lease)

    def needs_admission(self, tenant: str) -> bool:
        """Return whether new generations of this tenant need admission."""
        return tenant != OPEN_TENANT and bool(self.queued or self.per_minute)

    def is_counted(self, tenant: str) -> bool:
        """Return whether this tenant's running and waiting generations are counted."""
        return tenant != OPEN_TENANT and bool(self.running or self.queued)


class Admission(NamedTuple):
    """How many of several generations were admitted, the key that counted them ("" if none does), and the error of the
    others."""

    granted: int
    counted: str = ""
    refusal: LimitExceeded | None = None


class Quotas:
    """The reservations of all tenants. Every call may be repeated. StorageUnavailable if the queue's Redis is
    unavailable."""

    def __init__(self, redis: Redis, limits: TenantLimits) -> None:
        self._redis = redis
        self.limits = limits
        self._lease_ms = int(limits.lease * 1000)

    async def admit(self, tenant: str, gid: str, stored: Stored = NOTHING, share: int = 0) -> str:
        """Reserve a place in the queue, and count a creation and the bytes of its request. Return the key that counted
        the creation, or "". `share`: maximum bytes of the tenant's stored requests; 0 = no limit. LimitExceeded."""
        admission = await self.admit_many(tenant, {gid: stored}, share)
        if admission.refusal is not None:
            raise admission.refusal
        return admission.counted

    async def admit_many(self, tenant: str, new: Mapping[str, Stored], share: int = 0) -> Admission:
        """As `admit`, for as many of these generations as the limits allow: the first ones. Refuses instead of
        raising LimitExceeded."""
        limits = self.limits
        if tenant == OPEN_TENANT or not (limits.needs_admission(tenant) or share):
            return Admission(len(new))
        granted, counted, reason, wait = await self._redis.run(
            ADMIT,
            [keys.queued(tenant), keys.creations(tenant), keys.stored(tenant)],
            [
                *(limits.queued, limits.per_minute, WAITING_MS, share),
                *(part for gid, stored in new.items() for part in (gid, stored.size, stored.hour)),
            ],
        )
        return Admission(int(granted), counted.decode(), self._refusal(reason, share, int(wait)))

    def _refusal(self, reason: bytes, share: int, wait: int) -> LimitExceeded | None:
        limits = self.limits
        if reason == b"QUEUED":
            message = f"Queue limit reached: {limits.queued} generations are already waiting."
            return LimitExceeded(message, retry_after=SOON)
        if reason == b"RATE":
            message = f"Rate limit reached: {limits.per_minute} generations were created within this minute."
            return LimitExceeded(message, retry_after=wait)
        if reason == b"STORED":
            message = (
                f"Storage limit reached: the stored requests have {share} bytes or more; delete generations or wait."
            )
            return LimitExceeded(message, retry_after=LATER)
        return None

    async def cancel_admission(
        self, tenant: str, gid: str, counted: str, stored: Stored = NOTHING, share: int = 0
    ) -> None:
        """Undo `admit` for a generation that was not created."""
        await self.cancel_admissions(tenant, {gid: stored}, counted, share)

    async def cancel_admissions(self, tenant: str, new: Mapping[str, Stored], counted: str, share: int = 0) -> None:
        """Undo `admit_many` for generations that were not created."""
        less: list[Command] = []
        if self.limits.needs_admission(tenant) and new:
            less.append(("ZREM", keys.queued(tenant), *new))
            if counted:
                less += [("SET", counted, 0, "NX", "EX", 120), ("INCRBY", counted, -len(new))]
        for stored in new.values():
            less += _release(tenant, stored, share)
        await self._redis.pipeline(less)

    async def release_bytes(self, tenant: str, stored: Stored, share: int) -> None:
        """Subtract bytes that are no longer stored."""
        await self._redis.pipeline(_release(tenant, stored, share))

    async def acquire(self, tenant: str, gid: str) -> bool:
        """Move a generation from the waiting to the running ones; return whether there was a free reservation."""
        if not self.limits.is_counted(tenant):
            return True
        names = [keys.running(tenant), keys.queued(tenant)]
        return bool(await self._redis.run(ACQUIRE, names, [gid, self.limits.running, self._lease_ms]))

    async def release(self, tenant: str, gid: str) -> list[str]:
        """Release a running generation's reservation. Return the parked tickets that got one and must be queued
        again."""
        names = [keys.running(tenant), keys.parked(tenant)]
        reply = await self._redis.run(RELEASE, names, [gid, self.limits.running, self._lease_ms])
        return [ticket.decode() for ticket in reply]

    async def renew(self, running: Mapping[str, Collection[str]]) -> None:
        """Renew the reservations of running generations. `running`: tenant → generations."""
        calls = [((keys.running(tenant),), (self._lease_ms, *gids)) for tenant, gids in running.items()]
        await self._redis.run_many(RENEW, calls)

    def enqueue_keys(self, tenant: str) -> list[str]:
        """Return the last keys of enqueue.lua."""
        if not self.limits.is_counted(tenant):
            return []
        return [keys.running(tenant), keys.queued(tenant), keys.parked(tenant)]

    def enqueue_arguments(self, tenant: str, gid: str, *, park: bool) -> list[str | int]:
        """Return the last arguments of enqueue.lua."""
        if not self.limits.is_counted(tenant):
            return []
        return [gid, self.limits.running, self._lease_ms, WAITING_MS, int(park)]


def _release(tenant: str, stored: Stored, share: int) -> list[Command]:
    if tenant == OPEN_TENANT or not share or not stored.size:
        return []
    name = keys.stored(tenant)
    return [
        ("HINCRBY", name, stored.hour, -stored.size),
        ("HINCRBY", name, "sum", -stored.size),
        ("EXPIRE", name, 32 * 86400),
    ]

"""Quotas of a tenant: waiting generations, creations per minute, and bytes of stored requests.

All of it is in the queue's Redis and may be lost as a whole. A creation under way has a *reservation* among the waiting
ones, until its ticket counts. The limit of running generations is kept by pull.lua. Without API keys all generations
belong to `OPEN_TENANT`, which has no limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from broker.errors import LimitExceeded
from broker.redis.client import Command, Redis, Script
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.storage_share import NOTHING, Stored

ADMIT = Script("queue", "quota_admit")
OPEN_TENANT = "default"
"""The tenant of all generations if no API keys are set."""
WAITING_MS = 120_000
"""Lifetime of a reservation for a creation under way."""
LATER = 60  # seconds; Retry-After if the tenant's stored bytes are at the limit
SOON = 5  # seconds; Retry-After if the tenant's queue is full


class TenantLimit(NamedTuple):
    """Limits of one tenant: concurrent generations and creations per minute; 0 = no limit. `weight`: share of the
    turns, relative to other tenants."""

    running: int
    queued: int
    per_minute: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of all tenants: concurrent generations and creations per minute; 0 = no limit. `lease`: seconds. `own`:
    tenants with other limits."""

    running: int = 0
    queued: int = 0
    per_minute: int = 0
    lease: float = 15.0
    own: Mapping[str, TenantLimit] = field(default_factory=dict[str, TenantLimit])

    @classmethod
    def of(cls, settings: Settings) -> TenantLimits:
        own = {
            tenant: TenantLimit(quota.running, quota.queued, quota.per_minute, quota.weight)
            for tenant, quota in settings.own_quotas.items()
        }
        return cls(settings.tenant_running, settings.tenant_queued, settings.tenant_per_minute, settings.lease, own)

    def of_tenant(self, tenant: str) -> TenantLimit:
        """Return the limits of a tenant; none for the one without keys."""
        if tenant == OPEN_TENANT:
            return _NO_LIMIT
        return self.own.get(tenant) or TenantLimit(self.running, self.queued, self.per_minute)

    def encode_own(self) -> bytes:
        """Return the tenants with other limits as JSON: {tenant: [running, weight]}; "" if there are none."""
        shares = {tenant: (limit.running, limit.weight) for tenant, limit in self.own.items()}
        return msgspec.json.encode(shares) if shares else b""

    def needs_admission(self, tenant: str) -> bool:
        """Return whether new generations of this tenant need admission."""
        limit = self.of_tenant(tenant)
        return bool(limit.queued or limit.per_minute)

    def is_counted(self, tenant: str) -> bool:
        """Return whether the number of this tenant's running generations is limited."""
        return self.of_tenant(tenant).running > 0


_NO_LIMIT = TenantLimit(0, 0, 0)


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
        limits = self.limits.of_tenant(tenant)
        if tenant == OPEN_TENANT or not (self.limits.needs_admission(tenant) or share):
            return Admission(len(new))
        granted, counted, reason, wait = await self._redis.run(
            ADMIT,
            [keys.queued(tenant), keys.creations(tenant), keys.stored(tenant), keys.WAITING_COUNTS],
            [
                *(limits.queued, limits.per_minute, WAITING_MS, share, tenant),
                *(part for gid, stored in new.items() for part in (gid, stored.size, stored.hour)),
            ],
        )
        return Admission(int(granted), counted.decode(), _refusal(limits, reason, share, int(wait)))

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


def _refusal(limits: TenantLimit, reason: bytes, share: int, wait: int) -> LimitExceeded | None:
    if reason == b"QUEUED":
        message = f"Queue limit reached: {limits.queued} generations are already waiting."
        return LimitExceeded(message, retry_after=SOON)
    if reason == b"RATE":
        message = f"Rate limit reached: {limits.per_minute} generations were created within this minute."
        return LimitExceeded(message, retry_after=wait)
    if reason == b"STORED":
        message = f"Storage limit reached: the stored requests have {share} bytes or more; delete generations or wait."
        return LimitExceeded(message, retry_after=LATER)
    return None


def _release(tenant: str, stored: Stored, share: int) -> list[Command]:
    if tenant == OPEN_TENANT or not share or not stored.size:
        return []
    name = keys.stored(tenant)
    return [
        ("HINCRBY", name, stored.hour, -stored.size),
        ("HINCRBY", name, "sum", -stored.size),
        ("EXPIRE", name, 32 * 86400),
    ]

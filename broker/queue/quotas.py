"""Quotas of a tenant: running generations, waiting generations, creations per minute, and bytes of stored requests.

All of it is in the queue's Redis and may be lost as a whole. A *reservation* has an end: one among the running
generations lasts a lease, and the worker renews it; one among the waiting lasts for several sweeps of the reaper, each
of which renews it. A ticket that reaches the head while its tenant is at the limit is *parked* until a reservation is
free, so that the other tickets pass it. Without API keys all generations belong to `OPEN_TENANT`, which has no limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from broker.errors import LimitExceeded
from broker.redis.client import Redis, Script
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
        """Return whether this tenant's running and waiting generations are counted."""
        return tenant != OPEN_TENANT and bool(self.running or self.queued)


_NO_LIMIT = TenantLimit(0, 0, 0)


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
        limits = self.limits.of_tenant(tenant)
        if tenant == OPEN_TENANT or not (self.limits.needs_admission(tenant) or share):
            return ""
        reply = await self._redis.run(
            ADMIT,
            [keys.queued(tenant), keys.creations(tenant), keys.stored(tenant)],
            [gid, limits.queued, limits.per_minute, WAITING_MS, share, stored.size, stored.hour],
        )
        if reply[0] == b"QUEUED":
            message = f"Queue limit reached: {limits.queued} generations are already waiting."
            raise LimitExceeded(message, retry_after=SOON)
        if reply[0] == b"RATE":
            message = f"Rate limit reached: {limits.per_minute} generations were created within this minute."
            raise LimitExceeded(message, retry_after=int(reply[1]))
        if reply[0] == b"STORED":
            message = (
                f"Storage limit reached: the stored requests have {share} bytes or more; delete generations or wait."
            )
            raise LimitExceeded(message, retry_after=LATER)
        return reply[1].decode()

    async def cancel_admission(
        self, tenant: str, gid: str, counted: str, stored: Stored = NOTHING, share: int = 0
    ) -> None:
        """Undo `admit` for a generation that was not created."""
        if self.limits.needs_admission(tenant):
            less = [("SET", counted, 0, "NX", "EX", 120), ("DECR", counted)] if counted else []
            await self._redis.pipeline([("ZREM", keys.queued(tenant), gid), *less])
        await self.release_bytes(tenant, stored, share)

    async def release_bytes(self, tenant: str, stored: Stored, share: int) -> None:
        """Subtract bytes that are no longer stored."""
        if tenant != OPEN_TENANT and share and stored.size:
            name = keys.stored(tenant)
            await self._redis.pipeline(
                [
                    ("HINCRBY", name, stored.hour, -stored.size),
                    ("HINCRBY", name, "sum", -stored.size),
                    ("EXPIRE", name, 32 * 86400),
                ]
            )

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

"""Quotas of a tenant: waiting generations, creations per minute, and bytes of stored requests.

All of it is in the queue's Redis and may be lost as a whole. A creation under way has a *reservation* among the waiting
ones, until its ticket counts. The limit of running generations is kept by pull.lua. Without API keys all generations
belong to `OPEN_TENANT`, which has no limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import LimitExceeded
from broker.redis.client import Redis, Script
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
        """Return whether the number of this tenant's running generations is limited."""
        return tenant != OPEN_TENANT and self.running > 0


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
        limits = self.limits
        if tenant == OPEN_TENANT or not (limits.needs_admission(tenant) or share):
            return ""
        reply = await self._redis.run(
            ADMIT,
            [keys.queued(tenant), keys.creations(tenant), keys.stored(tenant), keys.WAITING_COUNTS],
            [gid, limits.queued, limits.per_minute, WAITING_MS, share, stored.size, stored.hour, tenant],
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

"""How much of the broker one tenant may have: generations that run, that wait, and that it asks for in a minute, and
bytes of stored requests.

All of it stands in the queue's Redis and may be lost whole. A *place* is a reservation with an end: among the running
it lasts as long as a lease, and the worker renews it; among the waiting a few looks of the reaper, each of which
renews it. A ticket that finds its tenant at the limit is *parked* and not asked again until a place is free, so the
others in the queue go past it. Where no keys are set everybody is `OPEN_TENANT`, who has no limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

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
"""Whose generations they are where no API keys are set."""
WAITING_MS = 120_000
"""For so long a place among the waiting lasts; the reaper looks at each of them every 30 s."""
LATER = 60  # seconds after which a tenant may try again that has too much stored
SOON = 5  # seconds after which a tenant may try again whose queue is full


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may have at once, and ask for in a minute; 0 = any number."""

    running: int = 0
    queued: int = 0
    per_minute: int = 0
    lease: float = 15.0

    @classmethod
    def of(cls, settings: Settings) -> TenantLimits:
        return cls(settings.tenant_running, settings.tenant_queued, settings.tenant_per_minute, settings.lease)

    def admit(self, tenant: str) -> bool:
        """Whether a new generation of this tenant must be asked for."""
        return tenant != OPEN_TENANT and bool(self.queued or self.per_minute)

    def count(self, tenant: str) -> bool:
        """Whether what runs and waits is counted."""
        return tenant != OPEN_TENANT and bool(self.running or self.queued)


class Quotas:
    """The places of all tenants. Everything may be repeated. StorageUnavailable where the queue's Redis is away."""

    def __init__(self, redis: Redis, limits: TenantLimits) -> None:
        self._redis = redis
        self.limits = limits
        self._lease_ms = int(limits.lease * 1000)

    async def admit(self, tenant: str, gid: str, stored: Stored = NOTHING, share: int = 0) -> str:
        """Reserves a place among the waiting, and counts a creation (under the key that is returned, if under any) and
        the bytes of its request. `share`: bytes of stored requests that the tenant may have; 0 = any number.
        LimitExceeded."""
        limits = self.limits
        if tenant == OPEN_TENANT or not (limits.admit(tenant) or share):
            return ""
        reply = await self._redis.run(
            ADMIT,
            [keys.queued(tenant), keys.creations(tenant), keys.stored(tenant)],
            [gid, limits.queued, limits.per_minute, WAITING_MS, share, stored.size, stored.hour],
        )
        if reply[0] == b"QUEUED":
            raise LimitExceeded(f"{limits.queued} generations wait already, as many as may.", retry_after=SOON)
        if reply[0] == b"RATE":
            message = f"{limits.per_minute} generations were asked for within a minute, as many as may."
            raise LimitExceeded(message, retry_after=int(reply[1]))
        if reply[0] == b"STORED":
            message = f"The stored requests have reached the limit of {share} bytes; delete generations, or wait."
            raise LimitExceeded(message, retry_after=LATER)
        return reply[1].decode()

    async def forgo(self, tenant: str, gid: str, counted: str, stored: Stored = NOTHING, share: int = 0) -> None:
        """It was admitted, and never came to be."""
        if self.limits.admit(tenant):
            less = [("SET", counted, 0, "NX", "EX", 120), ("DECR", counted)] if counted else []
            await self._redis.pipeline([("ZREM", keys.queued(tenant), gid), *less])
        await self.give_back(tenant, stored, share)

    async def give_back(self, tenant: str, stored: Stored, share: int) -> None:
        """These bytes are stored no longer."""
        if tenant != OPEN_TENANT and share and stored.size:
            name = keys.stored(tenant)
            await self._redis.pipeline(
                [
                    ("HINCRBY", name, stored.hour, -stored.size),
                    ("HINCRBY", name, "sum", -stored.size),
                    ("EXPIRE", name, 32 * 86400),
                ]
            )

    async def start(self, tenant: str, gid: str) -> bool:
        """From the waiting to the running, if there is a place."""
        if not self.limits.count(tenant):
            return True
        names = [keys.running(tenant), keys.queued(tenant)]
        return bool(await self._redis.run(ACQUIRE, names, [gid, self.limits.running, self._lease_ms]))

    async def stop(self, tenant: str, gid: str) -> list[str]:
        """It runs no longer. The parked tickets that have a place now and must be queued again."""
        names = [keys.running(tenant), keys.parked(tenant)]
        reply = await self._redis.run(RELEASE, names, [gid, self.limits.running, self._lease_ms])
        return [ticket.decode() for ticket in reply]

    async def hold(self, running: Mapping[str, Collection[str]]) -> None:
        """These still run: tenant → generations."""
        calls = [((keys.running(tenant),), (self._lease_ms, *gids)) for tenant, gids in running.items()]
        await self._redis.run_many(RENEW, calls)

    def names(self, tenant: str) -> list[str]:
        """The last keys of enqueue.lua."""
        return [keys.running(tenant), keys.queued(tenant), keys.parked(tenant)] if self.limits.count(tenant) else []

    def arguments(self, tenant: str, gid: str, *, park: bool) -> list[str | int]:
        """Its last arguments."""
        if not self.limits.count(tenant):
            return []
        return [gid, self.limits.running, self._lease_ms, WAITING_MS, int(park)]

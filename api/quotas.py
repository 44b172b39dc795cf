"""Limits on the number of subscribers of a tenant, and of a generation, at this gateway."""

from __future__ import annotations

from collections import Counter

from broker.errors import LimitExceeded
from broker.ids import ALL_TENANTS
from broker.queue.quotas import OPEN_TENANT
from broker.settings.settings import Settings

SOON = 5  # seconds after which a subscriber may have left


class SubscriberQuotas:
    """Counts subscribers in this process, without a call to Redis. Without API keys there is no limit."""

    def __init__(self, settings: Settings) -> None:
        self._quota_of = settings.quota_of
        self._most_of_generation = settings.generation_subscribers
        self._of_tenant: Counter[str] = Counter()
        self._of_generation: Counter[tuple[str, str]] = Counter()

    def check(self, tenant: str) -> None:
        """LimitExceeded if the tenant has reached its limit."""
        most = self._quota_of(tenant).subscribers
        if tenant != OPEN_TENANT and 0 < most <= self._of_tenant[tenant]:
            raise LimitExceeded(f"Subscriber limit reached: {most} streams are already open.", retry_after=SOON)

    def by_generation(self, tenant: str, most: int) -> dict[str, int]:
        """Return the number of subscribers of the `most` most followed generations of a tenant, or of ALL_TENANTS."""
        found: Counter[str] = Counter()
        for (name, gid), count in self._of_generation.items():
            if gid and tenant in (name, ALL_TENANTS):
                found[gid] += count
        return dict(found.most_common(most))

    def total(self, tenant: str) -> int:
        """Return the number of subscribers of a tenant, or of ALL_TENANTS."""
        return self._of_tenant.total() if tenant == ALL_TENANTS else self._of_tenant[tenant]

    def one(self, tenant: str, gid: str = "") -> SubscriberSlot:
        """Count one more subscriber until the returned context manager exits; of a generation, or of none.

        LimitExceeded if the tenant, or the generation, has reached its limit.
        """
        self.check(tenant)
        key = tenant, gid
        if gid and tenant != OPEN_TENANT and 0 < self._most_of_generation <= self._of_generation[key]:
            message = (
                f"Subscriber limit reached: {self._most_of_generation} subscribers already follow this generation."
            )
            raise LimitExceeded(message, retry_after=SOON)
        self._of_tenant[tenant] += 1
        self._of_generation[key] += 1
        return SubscriberSlot(self, key)

    def release(self, tenant: str, gid: str) -> None:
        key = tenant, gid
        self._of_tenant[tenant] -= 1
        self._of_generation[key] -= 1
        if not self._of_generation[key]:
            del self._of_generation[key]


class SubscriberSlot:
    """Counts one subscriber until it exits. Not a generator, which would cost half a kilobyte per subscriber."""

    __slots__ = ("_key", "_subscribers")

    def __init__(self, subscribers: SubscriberQuotas, key: tuple[str, str]) -> None:
        self._subscribers = subscribers
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._subscribers.release(*self._key)

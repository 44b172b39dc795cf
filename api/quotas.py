"""How many subscribers one tenant, and one generation, may have on this gateway."""

from __future__ import annotations

from collections import Counter

from broker.errors import LimitExceeded
from broker.queue.quotas import OPEN_TENANT
from broker.settings.settings import Settings

SOON = 5  # seconds after which somebody may have left


class SubscriberQuotas:
    """Counts them where they are: they cost Redis nothing. Where no keys are set there is no limit."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.tenant_subscribers
        self._most_of_one = settings.generation_subscribers
        self._of_tenant: Counter[str] = Counter()
        self._of_generation: Counter[tuple[str, str]] = Counter()

    def check(self, tenant: str) -> None:
        """LimitExceeded where the tenant has as many as it may."""
        if tenant != OPEN_TENANT and 0 < self._most <= self._of_tenant[tenant]:
            raise LimitExceeded(f"{self._most} streams are open, as many as may.", retry_after=SOON)

    def of(self, tenant: str, most: int) -> dict[str, int]:
        """The tenant's generations that are followed here, at most so many, those with the most subscribers first."""
        mine = Counter({gid: count for (name, gid), count in self._of_generation.items() if name == tenant and gid})
        return dict(mine.most_common(most))

    def total(self, tenant: str) -> int:
        return self._of_tenant[tenant]

    def one(self, tenant: str, gid: str = "") -> Counted:
        """One more, to be left as a context; of a generation, or of none in particular. LimitExceeded."""
        self.check(tenant)
        both = tenant, gid
        if gid and tenant != OPEN_TENANT and 0 < self._most_of_one <= self._of_generation[both]:
            message = f"{self._most_of_one} subscribers follow this generation, as many as may."
            raise LimitExceeded(message, retry_after=SOON)
        self._of_tenant[tenant] += 1
        self._of_generation[both] += 1
        return Counted(self, both)

    def left(self, tenant: str, gid: str) -> None:
        both = tenant, gid
        self._of_tenant[tenant] -= 1
        self._of_generation[both] -= 1
        if not self._of_generation[both]:
            del self._of_generation[both]


class Counted:
    """One subscriber, until this is left. Not a generator, which would be half a kilobyte of each."""

    __slots__ = ("_both", "_subscribers")

    def __init__(self, subscribers: SubscriberQuotas, both: tuple[str, str]) -> None:
        self._subscribers = subscribers
        self._both = both

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._subscribers.left(*self._both)

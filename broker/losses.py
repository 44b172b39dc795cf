"""Whether Redis has lately come back without what it held."""

from __future__ import annotations

import math
import time


class Losses:
    """Notices that Redis came back with another data set, by the names ("epochs") its shards give theirs."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._epochs: dict[str, bytes | None] = {}
        self._lost_at: dict[str, float] = {}

    def observe(self, shard: str, epoch: bytes | None) -> None:
        known = self._epochs.get(shard)
        if known is not None and known != epoch:
            self._lost_at[shard] = time.monotonic()
        self._epochs[shard] = epoch

    def recent(self, shard: str) -> bool:
        """Whether a generation that is not known may only not be known yet."""
        return time.monotonic() - self._lost_at.get(shard, -math.inf) < self._grace

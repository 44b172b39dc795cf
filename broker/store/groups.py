"""Groups: sets of generations with the same name in their request."""

from __future__ import annotations

from broker import records
from broker.errors import GroupNotFound
from broker.events import FINAL_STATUSES, STATUSES
from broker.ids import SHARDS
from broker.redis.client import Redis
from broker.store import keys


async def read_group(redis: Redis, tenant: str, name: str) -> records.Group:
    """Return the counts of a group, from each shard. GroupNotFound."""
    replies = await redis.pipeline([("HGETALL", keys.group(shard, tenant, name)) for shard in SHARDS])
    parts = [dict(zip(flat[::2], map(int, flat[1::2]), strict=True)) for flat in replies if flat]
    if not parts:
        raise GroupNotFound

    def total(field: str) -> int:
        return sum(part.get(field.encode(), 0) for part in parts)

    # A shard that has lost the group's hash, and not the generations, counts from below zero.
    counts = {status: max(0, total(status)) for status in STATUSES}
    prompt, completion = total("pt"), total("ct")
    ends = [part[b"last"] for part in parts if b"last" in part]
    ended = bool(ends) and not any(count for status, count in counts.items() if status not in FINAL_STATUSES)
    return records.Group(
        name=name,
        counts=counts,
        usage=records.GroupUsage(prompt, completion, prompt + completion),
        created_at=min(part[b"first"] for part in parts if b"first" in part) / 1000,
        ended_at=max(ends) / 1000 if ended else None,
    )

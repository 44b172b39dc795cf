"""Tickets and pulls on the real scripts, as gateways and workers use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.ids import created_ms, new_id
from broker.queue import commands
from broker.queue.commands import Pulled, Ticket, UpstreamLimits
from broker.redis.client import Redis
from broker.store import keys

LEASE_MS = 60_000
UNLIMITED = UpstreamLimits("default", adaptive=False)
"""The upstream of a pull that is about something else."""


async def now_ms(redis: Redis) -> int:
    seconds, micros = await redis.execute("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def put(redis: Redis, tenant: str, count: int = 1, **more: Any) -> list[str]:
    """Offer tickets that differ in their time of creation; return their generations."""
    start = await now_ms(redis) - count
    tickets = [ticket(new_id(start + number, tenant), tenant, **more) for number in range(count)]
    for each in tickets:
        assert await commands.offer(redis, each)
    return [each.gid for each in tickets]


def ticket(gid: str, tenant: str, **more: Any) -> Ticket:
    fields = {"number": 1, "lane": "default", "priority": 3, "tokens": 0, "order_ms": created_ms(gid), **more}
    return Ticket(gid, tenant, **fields)


async def pull(redis: Redis, most: int = 8, **more: Any) -> Pulled:
    arguments: dict[str, Any] = {
        "lease_ms": LEASE_MS, "born": "", "tenant_running": 0, "other_tenants": b"", "ageing_ms": 3_600_000,
        "upstreams": [UNLIMITED], **more,
    }  # fmt: skip
    return await commands.pull(redis, most, **arguments)


async def granted(redis: Redis, most: int = 8, **more: Any) -> list[str]:
    """The generations that a pull takes, in its order."""
    return gids((await pull(redis, most, **more)).tickets)


async def tenants(redis: Redis, most: int = 8, **more: Any) -> list[str]:
    """The tenants of the tickets that a pull takes, in its order."""
    tickets = (await pull(redis, most, **more)).tickets
    jobs = await redis.pipeline([("GET", keys.arq_job(each.decode())) for each in tickets])
    return [msgspec.json.decode(job)["a"][1] for job in jobs]


def gids(tickets: Sequence[bytes]) -> list[str]:
    return [each.decode().rpartition(".")[0] for each in tickets]


async def end(redis: Redis, gid: str, tenant: str, outcome: Any = "ok", resource: str = "default", **more: Any) -> Any:
    """End a call, as the worker does."""
    return await commands.done(redis, gid, tenant, resource, outcome, **{"worker": "w1", **more})

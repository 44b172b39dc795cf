"""Open Redis clients from a URL: `commands.py` for one server or the master that Sentinel names, `cluster.py` for a
cluster. The rest of the project imports Redis from here."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import RedisError

from broker.errors import Misconfigured
from broker.redis.cluster import Cluster, SlotMap
from broker.redis.commands import Call, Command, Pool, Redis, Script
from broker.redis.errors import storage_errors
from broker.redis.handshake import Argument, Reply
from broker.redis.topology import SentinelTopology, SingleServer, Topology
from broker.redis.url import parse_redis_url, without_password


def topology_of(url: str) -> Topology:
    """Return the topology that a URL describes. ValueError if the URL is not valid."""
    address = parse_redis_url(url)
    if address.kind == "cluster":
        return SlotMap(address)
    return SentinelTopology(address) if address.kind == "sentinel" else SingleServer(address)


def open_pool(url: str, **options: Any) -> Pool:
    """Open a pool for arq, whose transactions span several slots. Misconfigured for a cluster's URL."""
    topology = topology_of(url)
    if isinstance(topology, SlotMap):
        raise Misconfigured("The queue cannot be on a Redis Cluster.")
    return Pool(url, topology, **options)


@asynccontextmanager
async def connect_redis(url: str, *, topology: Topology | None = None, **options: Any) -> AsyncGenerator[Redis, None]:
    """Open a client that connects on first use. Options: `socket_timeout` (seconds, default 5) and `max_connections`
    (per server, default 64). `topology`: one to share with another client of the same URL."""
    topology = topology or topology_of(url)
    redis = Cluster(url, topology, **options) if isinstance(topology, SlotMap) else Pool(url, topology, **options)
    try:
        yield redis
    finally:
        await redis.close()


@asynccontextmanager
async def connect_both(
    logs_url: str, queue_url: str, *, max_connections: int = 64
) -> AsyncGenerator[tuple[Redis, Redis], None]:
    """Open the logs' Redis and the queue's Redis. If both have the same URL, they share one topology."""
    async with (
        connect_redis(logs_url, max_connections=max_connections) as logs,
        connect_redis(queue_url, topology=logs.topology if queue_url == logs_url else None) as queue,
    ):
        yield logs, queue


__all__ = [
    "Argument",
    "Call",
    "Command",
    "Pool",
    "Redis",
    "RedisError",
    "Reply",
    "Script",
    "connect_both",
    "connect_redis",
    "open_pool",
    "storage_errors",
    "topology_of",
    "without_password",
]

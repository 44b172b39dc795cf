"""Memory of the Redis servers, read at scrapes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from broker.errors import StorageUnavailable
from broker.redis.client import Redis, RedisError

KNOWN_FOR = 5.0  # seconds until INFO is called again: several Prometheus servers may scrape


class Memory(NamedTuple):
    """Used memory and `maxmemory` of a server, in bytes. `limit`: 0 = none."""

    used: int
    limit: int

    @property
    def share(self) -> float:
        """Used part of the limit; without a limit, less than that of any server that has one."""
        return self.used / self.limit if self.limit else 0.0


class RedisMemory:
    """The memory of named servers. Of a cluster it is that of the fullest server, the first to refuse writes."""

    def __init__(self, servers: Sequence[tuple[str, Redis]]) -> None:
        self._servers = servers
        self._known: dict[str, Memory] = {}
        self._read_at = float("-inf")

    async def read(self) -> dict[str, Memory]:
        """Return the memory by server, without those that do not answer, or do not allow INFO."""
        if time.monotonic() - self._read_at < KNOWN_FOR:
            return self._known
        found: dict[str, Memory] = {}
        for name, redis in self._servers:
            try:
                groups = [parse_memory(await redis.info("memory", group)) for group in redis.topology.groups]
            except (StorageUnavailable, RedisError):
                continue
            known = [memory for memory in groups if memory is not None]
            if known:
                found[name] = max(known, key=lambda memory: (memory.share, memory.used))
        self._known, self._read_at = found, time.monotonic()
        return found


def parse_memory(info: bytes) -> Memory | None:
    """Parse INFO's section; None if it has no `used_memory`."""
    fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    if b"used_memory" not in fields:
        return None
    return Memory(int(fields[b"used_memory"]), int(fields.get(b"maxmemory", 0)))

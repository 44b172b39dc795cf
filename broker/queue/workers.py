"""The workers, by the records that they renew with their heartbeats; and the request that one drains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.errors import InvalidRequest, WorkerNotFound
from broker.records import WorkerGeneration, WorkerRecord
from broker.redis.client import Redis
from broker.store import keys

MOST_LISTED = 100
"""Maximum number of running generations in a worker's record."""
LOST_FOR = 3600.0  # seconds for which a worker that stopped unexpectedly is listed
DRAIN_LIFETIME = 60  # seconds; a worker reads the request with its next heartbeat
_FIELDS = ("host", "pid", "version", "slots", "running", "upstreams", "started", "draining", "runs")


async def read_workers(redis: Redis, now: float) -> list[WorkerRecord]:
    """Return the workers, and those that stopped during the last hour without unregistering. `now`: unix seconds by
    Redis's clock. Raises StorageUnavailable."""
    flat = await redis.execute("ZRANGEBYSCORE", keys.WORKERS, int((now - LOST_FOR) * 1000), "+inf", "WITHSCORES")
    seen = {name.decode(): float(at) / 1000 for name, at in zip(flat[::2], flat[1::2], strict=True)}
    replies = await redis.pipeline(
        [command for name in seen for command in (("HMGET", keys.worker(name), *_FIELDS), ("EXISTS", keys.drain(name)))]
    )
    found = zip(seen.items(), replies[::2], replies[1::2], strict=True)
    workers = [_record(name, at, fields, asked=bool(asked)) for (name, at), fields, asked in found]
    return sorted(workers, key=lambda one: (one.state == "lost", one.id))


async def request_drain(redis: Redis, worker: str, now: float) -> WorkerRecord:
    """Ask a worker to drain: it takes no more generations, and exits as after SIGTERM. Return its record. Raises
    WorkerNotFound, or InvalidRequest for a worker of a version that does not obey."""
    for one in await read_workers(redis, now):
        if one.id == worker and one.state != "lost":
            if one.upstreams is None:
                raise InvalidRequest(f"`{worker}` has version {one.version}: let it drain by SIGTERM.", param="worker")
            await redis.execute("SET", keys.drain(worker), "1", "PX", DRAIN_LIFETIME * 1000)
            return msgspec.structs.replace(one, state="draining")
    raise WorkerNotFound(f"There is no worker `{worker[:100]}`, or it has stopped.")


def _record(name: str, seen_at: float, fields: Sequence[bytes | None], *, asked: bool) -> WorkerRecord:
    """Workers of 0.2.0 tell less."""
    host, pid, version, slots, running, upstreams, started, draining, runs = fields
    if host is None:
        return WorkerRecord(id=name, state="lost", seen_at=seen_at)
    return WorkerRecord(
        id=name,
        state="draining" if asked or draining == b"1" else "running",
        seen_at=seen_at,
        host=host.decode(),
        pid=int(pid or 0),
        version=(version or b"").decode(),
        slots=int(slots or 0),
        running=int(running or 0),
        upstreams=_json(upstreams),
        started_at=int(started) / 1000 if started else None,
        generations=[WorkerGeneration(*one) for one in _json(runs) or ()],
    )


def _json(text: bytes | None) -> Any:
    return None if text is None else msgspec.json.decode(text)

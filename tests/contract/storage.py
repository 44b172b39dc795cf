"""Area: the keys in Redis: names, types, fields and the form of values."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, ended, running
from tests.support import gather

_TRANSIENT = re.compile(
    r"tc:(bell|ready|later|depth|qn|at|fullz|asked)$|tc:(wait|turn|q|r|full|fg|ur|ub|refill|hist|subs|drain):"
    r"|tc:\{\w\w\}:(w:|rights)"
    r"|arq:(job|in-progress|retry|result):|tc:rate:|.*health-check"
)
"""Keys whose existence depends on the moment of the recording."""


@asynccontextmanager
async def client(url: str) -> AsyncGenerator[Redis, None]:
    redis = Redis.from_url(url, decode_responses=True)
    try:
        yield redis
    finally:
        await redis.aclose()


async def trimmed(url: str, gid: str, keep: int) -> None:
    """Leave only the last entries of a log."""
    async with client(url) as redis:
        [log] = [name async for name in redis.scan_iter(f"*:l:{gid}", count=10_000)]
        await redis.xtrim(log, maxlen=keep, approximate=False)


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("storage")
    gids = await gather(
        ended(rec, api, "completed", "length=1", metadata={"a": "b"}),
        ended(rec, api, "failed", "fault=truncate at=1"),
        running(rec, api, "running"),
        running(rec, api, "cancelled"),
        ended(rec, api, "deleted", "length=1"),
    )
    await api.http.post(f"/v1/generations/{gids[3]}/cancel")
    await api.http.delete(f"/v1/generations/{gids[4]}")
    async with client(stage.redis.url) as redis:
        for gid in gids:
            for name in sorted([name async for name in redis.scan_iter(f"*{gid}*", count=10_000)]):
                if not _TRANSIENT.match(name):
                    rec.note(pattern(name), [f"type: {await redis.type(name)}", *await _content(redis, name)])
        rec.note("keys", sorted(await _patterns(redis)))


async def _patterns(redis: Redis) -> set[str]:
    """The pattern of each key's name, its type, and whether it expires."""
    found: set[str] = set()
    async for name in redis.scan_iter(count=10_000):
        if not _TRANSIENT.match(name):
            lifetime = "expires" if await redis.pttl(name) > 0 else "stays"
            found.add(" · ".join((pattern(name), await redis.type(name), lifetime, *await _fields(redis, name))))
    return found


async def _fields(redis: Redis, name: str) -> list[str]:
    """The names of the fields of keys that belong to no generation."""
    if name.startswith("tc:w:"):
        return sorted(await redis.hgetall(name))
    return list((await redis.xrange(name, count=1))[0][1]) if name.endswith(":act") else []


def pattern(name: str) -> str:
    """A key's name with its variable parts masked."""
    name = re.sub(r"gen_\w{34}", "<generation>", name)
    name = re.sub(r"\{\w\w\}", "{<shard>}", name)
    name = re.sub(r"^(tc:\{<shard>\}:i:)\w+", r"\1<tenant>", name)
    name = re.sub(r"^(tc:\{<shard>\}:(?:g|i:<tenant>:[ckm]):)[0-9a-f]{16}", r"\1<hash>", name)
    name = re.sub(r"^(tc:\{<shard>\}:idem:)\w+:\w{64}", r"\1<tenant>:<hash>", name)
    name = re.sub(r"^(tc:(?:q|r|bytes):)\w+", r"\1<tenant>", name)
    return re.sub(r"^tc:w:.*", "tc:w:<worker>", name)


async def _content(redis: Redis, name: str) -> list[str]:
    kind = await redis.type(name)
    if kind == "hash":
        return [f"{field}: {_value(field, value)}" for field, value in sorted((await redis.hgetall(name)).items())]
    if kind == "stream":
        return [f"{entry}: {_entry(fields)}" for entry, fields in await redis.xrange(name)]
    return [json.dumps(await redis.get(name))] if kind == "string" else []


_NUMBERS = {"by": "<bytes>", "ca": "<ms>", "le": "<ms>", "sa": "<ms>", "fa": "<ms>", "ea": "<ms>", "xa": "<ms>"}


def _value(field: str, value: str) -> str:
    if field in _NUMBERS:
        return _NUMBERS[field] if value.isdigit() else value
    if field == "own":
        return re.sub(r"\..+", ".<token>", value)
    return value


def _entry(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={'<n>' if name == 'm' else value}" for name, value in fields.items())

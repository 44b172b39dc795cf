"""The state of the upstreams as the queue has it: what they take, what they have, and why they take no more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from broker.events import WaitingReason
from broker.records import Circuit
from broker.redis.client import Argument, Redis, Script
from broker.store import keys

RESUME = Script("queue", "resume")
FIRST_LIMIT = 4
"""Calls at once that an upstream without a limit gets at first (lua/resources.lua)."""
TOLD = 300.0  # seconds after which a limit that is no longer told is forgotten (lua/resources.lua)
BURST_MS = 10_000.0  # time of a rate that may be used at once (lua/resources.lua)
ToldName = Literal["requests_per_minute", "tokens_per_minute"]
FRESH = 1.0  # seconds for which states are not read again
PAUSE_SECONDS = 30 * 86400  # lifetime of pauses; each pull renews it


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """An upstream in the queue. Limits are None if there is none; times in unix seconds."""

    resource: str
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    learned_concurrency: int | None
    in_flight: int
    refused: int
    circuit: Circuit
    told_limits: Sequence[ToldName]
    """Names of the limits that the upstream has told in its headers."""
    busy_until: float | None
    """Time until which nobody calls it: it said so, or its circuit is open, or its rate is used up."""
    paused: bool

    @property
    def limit(self) -> int | None:
        """Calls at once that it gets: the configured limit and the learned one."""
        limits = [one for one in (self.max_concurrency, self.learned_concurrency) if one is not None]
        return min(limits, default=None)

    def reason(self, now: float) -> tuple[WaitingReason, float | None] | None:
        """Return why it takes no call now, and until when; None if it does."""
        if self.paused:
            return "paused", None
        if self.circuit != "closed":
            return "upstream_down", self.busy_until
        if self.busy_until is not None and self.busy_until > now:
            return "upstream_busy", self.busy_until
        if self.limit is not None and self.in_flight >= self.limit:
            return "upstream_limit", None
        return None


class UpstreamStates:
    """Reads the states, at most once a second for all callers; and changes limits and pauses. StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: dict[str, tuple[float, UpstreamState]] = {}
        self._paused: tuple[float, frozenset[str]] = (float("-inf"), frozenset())

    async def read(self, resources: Sequence[str], now: float) -> dict[str, UpstreamState]:
        """Return the states of upstreams. `now`: unix seconds by the clock of Redis."""
        missing = [one for one in resources if time.monotonic() - self._known.get(one, (float("-inf"),))[0] > FRESH]
        if missing:
            paused = await self.paused()
            replies = await self._redis.pipeline(
                [
                    command
                    for one in missing
                    for command in (
                        ("HGETALL", keys.upstream(one)),
                        ("ZCOUNT", keys.places(one), f"({now * 1000:.0f}", "+inf"),
                    )
                ]
            )
            for one, fields, count in zip(missing, replies[::2], replies[1::2], strict=True):
                state = _state(one, _hash(fields), int(count), now, paused=f"u:{one}" in paused)
                self._known[one] = time.monotonic(), state
        return {one: self._known[one][1] for one in resources}

    async def paused(self) -> frozenset[str]:
        """Return what is paused: `all`, `u:<upstream>`, `t:<tenant>`."""
        read_at, names = self._paused
        if time.monotonic() - read_at > FRESH:
            found = await self._redis.execute("HKEYS", keys.PAUSED)
            names = frozenset(name.decode() for name in found)
            self._paused = time.monotonic(), names
        return names

    async def pause(self, names: Sequence[str], now: float) -> None:
        """Pause everything (`all`), upstreams (`u:<name>`) or tenants (`t:<name>`)."""
        since: list[Argument] = [part for name in names for part in (name, int(now * 1000))]
        await self._redis.pipeline([("HSET", keys.PAUSED, *since), ("EXPIRE", keys.PAUSED, PAUSE_SECONDS)])
        self._forget()

    async def resume(self, names: Sequence[str]) -> None:
        """End pauses."""
        await self._redis.run(RESUME, [], list(names))
        self._forget()

    async def set_limits(self, resource: str, limits: Mapping[str, int | None]) -> None:
        """Set limits at run time, which win over configured ones; None removes one. Names: `max_concurrency`,
        `requests_per_minute`, `tokens_per_minute`. With the first, the learned limit is forgotten."""
        fields = {"max_concurrency": "omax", "requests_per_minute": "orpm", "tokens_per_minute": "otpm"}
        values: list[Argument] = []
        for name, limit in limits.items():
            values += (fields[name], "" if limit is None else limit)
        changes: list[tuple[Argument, ...]] = [
            ("HSET", keys.upstream(resource), *values),
            ("EXPIRE", keys.upstream(resource), 604_800),
        ]
        if "max_concurrency" in limits:  # what was learned may be no longer true
            changes.append(("HDEL", keys.upstream(resource), "L", "ceil", "need", "held", "ramp"))
        await self._redis.pipeline(changes)
        await self._redis.pipeline([("LPUSH", keys.BELL, ""), ("EXPIRE", keys.BELL, 60)])
        self._forget()

    def _forget(self) -> None:
        self._known.clear()
        self._paused = (float("-inf"), frozenset())


def _hash(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _state(resource: str, fields: Mapping[str, str], in_flight: int, now: float, *, paused: bool) -> UpstreamState:
    most = _limit(fields, "max")
    learned = int(float(fields["L"])) if fields.get("L") else (None if most else FIRST_LIMIT)
    circuit: Circuit = "closed"
    until = float(fields.get("busy") or 0) / 1000
    if fields.get("circuit") == "open":
        until = (float(fields["since"]) + float(fields["wait"])) / 1000
        circuit = "open" if until > now else "half_open"
    rpm, tpm = _limit(fields, "rpm"), _limit(fields, "tpm")
    if rpm and fields.get("rt"):
        each = 60_000 / rpm
        until = max(until, (float(fields["rt"]) + each - max(BURST_MS, each)) / 1000)
    until = max(until, _told_until(fields, now))
    told_rpm, told_tpm = _told(fields, "r", now, rpm), _told(fields, "t", now, tpm)
    return UpstreamState(
        resource=resource,
        max_concurrency=most,
        requests_per_minute=told_rpm or rpm,
        tokens_per_minute=told_tpm or tpm,
        told_limits=_names(told_rpm, told_tpm),
        learned_concurrency=learned,
        in_flight=in_flight,
        refused=int(fields.get("refused") or 0),
        circuit=circuit,
        busy_until=until if until > now or circuit != "closed" else None,
        paused=paused,
    )


def _limit(fields: Mapping[str, str], name: str) -> int | None:
    value = fields.get("o" + name) or fields.get(name) or "0"
    return int(value) or None


def _names(told_rpm: int | None, told_tpm: int | None) -> list[ToldName]:
    names: list[ToldName] = ["requests_per_minute"] if told_rpm else []
    return [*names, "tokens_per_minute"] if told_tpm else names


def _told(fields: Mapping[str, str], kind: str, now: float, configured: int | None) -> int | None:
    """Return the rate that the upstream has told lately, in units a minute; None if it has told none, or one that is
    not lower than the configured one. A limit of an hour or a day is not a rate: its units may be used at once."""
    bucket = _bucket(fields, kind, now)
    told = max(1, round(60 * bucket.limit / bucket.window)) if bucket and bucket.window <= 60 else None
    return told if told and (configured is None or told < configured) else None


def _told_until(fields: Mapping[str, str], now: float) -> float:
    """Return the time of the next call by the requests that the upstream has told; 0 if it can be made now."""
    bucket = _bucket(fields, "r", now)
    if bucket is None:
        return 0.0
    missing = (2 if bucket.limit >= 10 else 1) - bucket.left
    return now + missing * bucket.window / bucket.limit if missing > 0 else 0.0


class _Bucket(NamedTuple):
    limit: float
    window: float
    """Seconds."""
    left: float


def _bucket(fields: Mapping[str, str], kind: str, now: float) -> _Bucket | None:
    """Return a told bucket as it is now (`told_bucket` of lua/resources.lua)."""
    if not fields.get(f"{kind}.limit") or now - float(fields[f"{kind}.told"]) / 1000 > TOLD:
        return None
    limit, window, left = (float(fields[f"{kind}.{name}"]) for name in ("limit", "window", "left"))
    since = max(0.0, now - float(fields[f"{kind}.at"]) / 1000)
    return _Bucket(limit, window / 1000, min(limit, left + since * limit * 1000 / window))

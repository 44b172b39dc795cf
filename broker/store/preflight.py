"""What must be true of a Redis before it is used, and what an operator should know of it.

`Watch` looks at the start, when nothing is in danger yet, and again as long as the process lives: another server may
have taken over, or somebody may have changed a setting. INFO is all it needs; CONFIG would want administrator's rights.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from broker.concurrency.backoff import Backoff, LogThrottle
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import Misconfigured, StorageUnavailable
from broker.ids import SHARDS
from broker.redis.client import Redis, RedisError, without_password
from broker.redis.clock import RedisClock
from broker.redis.commands import at_fault, forbidden, storage_errors
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.permissions import missing_rights

OLDEST = (6, 2)  # XADD NOMKSTREAM, and exclusive ranges in XRANGE: the scripts and the readers rest on them
WITHIN = 1.5  # seconds for the masters to tell of rights; less than a probe of readiness has
FRESH = 2.0  # seconds for which a user's rights are taken for unchanged
REFUSALS = ("rights", "url")
"""Kinds of findings with which nothing can be written or read: logged again and again."""
SKEW = 1.0  # seconds between two clocks that are not worth a word
MONTH_MS = 30 * 86_400_000

# The first releases, by branch, without CVE-2026-23479 (a use after free when blocked commands are woken) and
# CVE-2026-23631 (in Lua): blocking reads and scripts are all that we do. Newer branches have neither.
PATCHED = {
    "Redis": {(6, 2): 22, (7, 2): 14, (7, 4): 9, (8, 2): 6, (8, 4): 3, (8, 6): 3},
    "Valkey": {(7, 2): 13, (8, 0): 8, (8, 1): 7, (9, 0): 4},
}


class Finding(NamedTuple):
    kind: str
    message: str
    fatal: bool = False

    @property
    def known_by(self) -> str:
        """What makes a repeated one the same: of a clock not its numbers."""
        return self.kind if self.kind == "clock" else self.message


class CheckedServer:
    """One Redis, what it is used for, and what was said of it."""

    def __init__(self, redis: Redis, *, logs: bool, queue: bool) -> None:
        self.redis = redis
        self.clock = RedisClock(redis)
        self.logs, self.queue = logs, queue
        self.accepted = False
        self.said: frozenset[str] = frozenset()
        self.troubles = LogThrottle()
        self.unusable: str | None = None
        self._rights_seen_at = float("-inf")
        self._missing: str | None = None

    async def trouble(self) -> str | None:
        """Why it cannot be used now, over both kinds of connection; None if it can. What rights the user has may be as
        old as FRESH."""
        if trouble := await self.redis.trouble():
            return trouble
        if time.monotonic() - self._rights_seen_at > FRESH:
            try:
                await self.missing_rights()
            except StorageUnavailable as error:
                return error.message
        return self._missing

    async def missing_rights(self) -> str | None:
        """What the user may not do on one of the masters. Asked over connections of the kind that reads and appends; a
        master of a cluster that does not answer stalls only its own shards. StorageUnavailable where none answers."""
        with storage_errors():
            groups = await self.redis.servers.each_server()
            asking = [asyncio.create_task(self._missing_on(group)) for group in groups]
            await asyncio.wait(asking, timeout=WITHIN)
            answers: list[str | BaseException | None] = await cancel_and_wait(asking)
            told = [answer for answer in answers if not isinstance(answer, BaseException)]
            if not told:
                raise next((answer for answer in answers if isinstance(answer, Exception)), TimeoutError())
        self._rights_seen_at = time.monotonic()
        self._missing = next((answer for answer in told if answer), None)
        return self._missing

    async def _missing_on(self, group: str) -> str | None:
        connection = await self.redis.servers.open(group)
        try:
            return await missing_rights(connection, group, logs=self.logs, queue=self.queue)
        finally:
            connection.close()


def servers_in_use(streams: Redis, queue: Redis) -> list[CheckedServer]:
    """The logs' and the queue's, which may be one."""
    if streams.url == queue.url:
        return [CheckedServer(streams, logs=True, queue=True)]
    return [CheckedServer(streams, logs=True, queue=False), CheckedServer(queue, logs=False, queue=True)]


class Preflight:
    """`look` once, or `begin` where Redis may be away still; then `run` until the end."""

    def __init__(self, streams: Redis, queue: Redis, settings: Settings, log: logging.Logger) -> None:
        self._servers = servers_in_use(streams, queue)
        self._period = settings.lease
        self._log = log
        self._troubles = LogThrottle()

    @property
    def trouble(self) -> str | None:
        """Why a server that is in use cannot be used, as of the last look."""
        return next((server.unusable for server in self._servers if server.unusable), None)

    async def begin(self) -> None:
        """Until each server answers and may be used. Misconfigured says why one may not."""
        backoff = Backoff(0.1, longest=5.0)
        while not all(server.accepted for server in self._servers):
            for server in self._servers:
                await server.redis.answering(self._log)
            if trouble := await self.look():
                self._troubles.tell(self._log, f"{trouble} Trying again.")
                await backoff.wait()

    async def run(self) -> None:
        """Looks again once a lease. Says what is new; ends nothing, since what runs already is best served so."""
        while True:
            await asyncio.sleep(self._period * random.uniform(0.8, 1))
            await self.look()

    async def look(self) -> str | None:
        """At those that answer; returns why one could not be looked at. Misconfigured where one cannot be used that was
        not in use yet."""
        away: str | None = None
        for server in self._servers:
            try:
                findings = await self._examine(server)
            except StorageUnavailable as error:
                why = at_fault(error)
                if why is None:
                    away = error.message  # its users log that it is away
                    continue
                findings = [Finding("url", why, fatal=True)]
            except RedisError as error:
                away = f"Redis refuses: {error}"
                continue
            self._report(server, findings)
        return away

    def _report(self, server: CheckedServer, findings: list[Finding]) -> None:
        where = f"Redis at {without_password(server.redis.url)}"
        fatal = next((finding for finding in findings if finding.fatal), None)
        if fatal is not None and not server.accepted:
            raise Misconfigured(f"{where}: {fatal.message}")
        refused = next((finding for finding in findings if finding.kind in REFUSALS), None)
        server.unusable = refused and refused.message
        for finding in findings:
            if finding.kind in REFUSALS:
                server.troubles.tell(self._log, f"{where}: {finding.message}", logging.ERROR)
            elif finding.known_by not in server.said:
                level = logging.ERROR if finding.fatal else logging.WARNING
                self._log.log(level, "%s: %s", where, finding.message)
        if refused is None:
            server.troubles.over()
        server.accepted = True
        server.said = frozenset(finding.known_by for finding in findings)

    async def _examine(self, server: CheckedServer) -> list[Finding]:
        if missing := await server.missing_rights():
            return [Finding("rights", missing, fatal=True)]
        embedded = bool(await server.redis.execute("EXISTS", keys.EMBEDDED)) if server.queue else False
        findings: list[Finding] = []
        with storage_errors():
            groups = await server.redis.servers.each_server()
        for group in groups:
            info = await _info(server.redis, group)
            findings += [NO_INFO] if info is None else about(info, durable=server.logs and not embedded)
        if server.queue:
            findings += await _layout(server.redis)
        findings += about_clock(*await server.clock.ask())
        return list(dict.fromkeys(findings))  # the servers of a cluster are mostly alike


NO_INFO = Finding(
    "info", "this user may not ask INFO (ACL: +info), so version, maxmemory-policy and persistence are not checked"
)


async def _info(redis: Redis, group: str) -> dict[str, str] | None:
    """None where it is not allowed: by ACL, or by a managed service that took the command away."""
    try:
        text = await redis.info("default", group)
    except RedisError:
        return None
    except StorageUnavailable as error:
        if forbidden(error):
            return None
        raise
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def about(info: Mapping[str, str], *, durable: bool) -> list[Finding]:
    """What INFO tells, if it tells it: a compatible server may leave out what it does not have. `durable` is asked of
    the logs' server; the queue can be lost whole."""
    return [
        finding
        for finding in (_about_version(info), _about_eviction(info), _about_persistence(info) if durable else None)
        if finding is not None
    ]


def _about_version(info: Mapping[str, str]) -> Finding | None:
    # Valkey tells the version of Redis that it is compatible with, and its own beside it.
    name = "Valkey" if "valkey_version" in info else "Redis"
    offered, told = info.get("redis_version", ""), info.get(f"{name.lower()}_version", "")
    compatible, version = _version(offered), _version(told)
    if compatible is None or version is None:
        return None
    if compatible[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding("version", f"Redis {offered} is too old, {oldest} is needed (XADD NOMKSTREAM)", fatal=True)
    patched = PATCHED[name]
    branch, patch = version[:2], version[2]
    if branch > max(patched) or patch >= patched.get(branch, patch + 1):
        return None
    (major, minor), fixed = max(patched.items())
    return Finding(
        "version",
        f"{name} {told} has CVE-2026-23479 and CVE-2026-23631, in the commands used here, unless whoever built it "
        f"has mended them; {name} {major}.{minor}.{fixed} has neither",
    )


def _version(text: str) -> tuple[int, int, int] | None:
    parts = text.split(".")
    if len(parts) < 3 or not all(part.isdigit() for part in parts[:3]):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def _about_eviction(info: Mapping[str, str]) -> Finding | None:
    """Whether or not there is a limit already: with one set later, while we run, nothing would be left to refuse.
    Every key here has a lifetime, so `volatile-…` is no better than `allkeys-…`."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return Finding(
        "eviction",
        f"maxmemory-policy is {policy}, which would drop generations while they run or are read; "
        "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)",
        fatal=True,
    )


def _about_persistence(info: Mapping[str, str]) -> Finding | None:
    if info.get("aof_enabled", "1") != "0":
        return None
    return Finding(
        "persistence",
        "it has no append-only file, so a restart of it loses queued and ended generations, not only the last second "
        "(appendonly yes, appendfsync everysec)",
    )


async def _layout(queue: Redis) -> list[Finding]:
    """The number of shards is part of what is stored: a process with another one would not find a part of it."""
    ours = str(len(SHARDS)).encode()
    with suppress(StorageUnavailable):  # full, or not to be written to at the moment
        await queue.execute("SET", keys.SHARD_COUNT, ours, "NX", "PX", MONTH_MS)
        await queue.execute("PEXPIRE", keys.SHARD_COUNT, MONTH_MS)
    theirs = await queue.execute("GET", keys.SHARD_COUNT)
    if theirs in (None, ours):
        return []
    there, here = theirs.decode(errors="replace")[:20], ours.decode()
    message = f"what is stored there has {there} shards, this version has {here}; use another database"
    return [Finding("shards", f"{message} ({keys.SHARD_COUNT})", fatal=True)]


async def mark_embedded(redis: Redis) -> None:
    """Says in the server itself that it is there for as long as its owner, and its owner knows."""
    await redis.execute("SET", keys.EMBEDDED, "1", "PX", MONTH_MS)


def about_clock(least: float, most: float) -> list[Finding]:
    """`least` and `most`: by how many seconds Redis's clock is ahead of this machine's."""
    off = least if least > SKEW else most if most < -SKEW else 0.0
    if not off:
        return []
    which = "behind" if off > 0 else "ahead of"
    return [Finding("clock", f"this machine's clock is {abs(off):.1f} s {which} its; one of the two is wrong")]

"""Checks of a Redis before it is used, and warnings for its operator.

`Preflight` checks at startup, before any data is at risk, and again during operation: another server may have taken
over, or a setting may have changed. It only needs INFO; CONFIG would require administrator's rights.
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
from broker.redis.errors import configuration_error, is_forbidden, storage_errors
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.permissions import missing_rights

OLDEST = (6, 2)  # scripts and readers require XADD NOMKSTREAM and exclusive ranges in XRANGE
WITHIN = 1.5  # seconds; timeout for checking rights on the masters, shorter than that of a readiness probe
FRESH = 2.0  # seconds for which the result of a rights check is reused
REFUSALS = ("rights", "url")
"""Kinds of findings that prevent all reads and writes; they are logged repeatedly."""
SKEW = 1.0  # seconds; a smaller difference between two clocks is not reported
MONTH_MS = 30 * 86_400_000

# The first patched releases, by branch, for CVE-2026-23479 (a use after free when blocked commands are woken) and
# CVE-2026-23631 (in Lua): we mainly use blocking reads and scripts. Newer branches are not affected.
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
        """Identity of a finding across checks; for a clock without its figures."""
        return self.kind if self.kind == "clock" else self.message


class CheckedServer:
    """A Redis, its use, and the findings reported so far."""

    def __init__(self, redis: Redis, *, logs: bool, queue: bool) -> None:
        self.redis = redis
        self.clock = RedisClock(redis)
        self.logs, self.queue = logs, queue
        self.accepted = False
        self.reported: frozenset[str] = frozenset()
        self.log_throttle = LogThrottle()
        self.unusable_reason: str | None = None
        self._rights_seen_at = float("-inf")
        self._missing: str | None = None

    async def unavailable_reason(self) -> str | None:
        """Return why it cannot be used now, over either kind of connection; None if it can. The result of the rights
        check may be FRESH seconds old."""
        if reason := await self.redis.unavailable_reason():
            return reason
        if time.monotonic() - self._rights_seen_at > FRESH:
            try:
                await self.missing_rights()
            except StorageUnavailable as error:
                return error.message
        return self._missing

    async def missing_rights(self) -> str | None:
        """Return a message about rights that the user lacks on one of the masters; None if none is missing. Uses
        connections of the kind that reads and appends. A master of a cluster that does not answer is skipped: it stalls
        only its own shards. StorageUnavailable if none answers."""
        with storage_errors():
            groups = await self.redis.topology.server_groups()
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
        connection = await self.redis.topology.open(group)
        try:
            return await missing_rights(connection, group, logs=self.logs, queue=self.queue)
        finally:
            connection.close()


def redis_servers(logs: Redis, queue: Redis) -> list[CheckedServer]:
    """Return the logs' Redis and the queue's Redis, which may be the same."""
    if logs.url == queue.url:
        return [CheckedServer(logs, logs=True, queue=True)]
    return [CheckedServer(logs, logs=True, queue=False), CheckedServer(queue, logs=False, queue=True)]


class Preflight:
    """Call `check` once, or `wait_until_accepted` if Redis may be unavailable at first; then `run` until shutdown."""

    def __init__(self, logs: Redis, queue: Redis, settings: Settings, log: logging.Logger) -> None:
        self._servers = redis_servers(logs, queue)
        self._period = settings.lease
        self._log = log
        self._log_throttle = LogThrottle()

    @property
    def unusable_reason(self) -> str | None:
        """Why a server in use cannot be used, as of the last check; None if all can."""
        return next((server.unusable_reason for server in self._servers if server.unusable_reason), None)

    async def wait_until_accepted(self) -> None:
        """Wait until each server answers and can be used. Misconfigured if one does not meet the requirements."""
        backoff = Backoff(0.1, longest=5.0)
        while not all(server.accepted for server in self._servers):
            for server in self._servers:
                await server.redis.wait_until_available(self._log)
            if trouble := await self.check():
                self._log_throttle.tell(self._log, f"{trouble} Trying again.")
                await backoff.wait()

    async def run(self) -> None:
        """Check again once per lease. Log new findings; never stop the process, since running generations are best
        served by continuing."""
        while True:
            await asyncio.sleep(self._period * random.uniform(0.8, 1))
            await self.check()

    async def check(self) -> str | None:
        """Check the servers that answer; return why one could not be checked. Misconfigured if a server that is not in
        use yet does not meet the requirements."""
        away: str | None = None
        for server in self._servers:
            try:
                findings = await self._examine(server)
            except StorageUnavailable as error:
                why = configuration_error(error)
                if why is None:
                    away = error.message  # the components that use it log that it is unavailable
                    continue
                findings = [Finding("url", why, fatal=True)]
            except RedisError as error:
                away = f"Redis rejects the command: {error}"
                continue
            self._report(server, findings)
        return away

    def _report(self, server: CheckedServer, findings: list[Finding]) -> None:
        where = f"Redis at {without_password(server.redis.url)}"
        fatal = next((finding for finding in findings if finding.fatal), None)
        if fatal is not None and not server.accepted:
            raise Misconfigured(f"{where}: {fatal.message}")
        refused = next((finding for finding in findings if finding.kind in REFUSALS), None)
        server.unusable_reason = refused and refused.message
        for finding in findings:
            if finding.kind in REFUSALS:
                server.log_throttle.tell(self._log, f"{where}: {finding.message}", logging.ERROR)
            elif finding.known_by not in server.reported:
                level = logging.ERROR if finding.fatal else logging.WARNING
                self._log.log(level, "%s: %s", where, finding.message)
        if refused is None:
            server.log_throttle.over()
        server.accepted = True
        server.reported = frozenset(finding.known_by for finding in findings)

    async def _examine(self, server: CheckedServer) -> list[Finding]:
        if missing := await server.missing_rights():
            return [Finding("rights", missing, fatal=True)]
        embedded = bool(await server.redis.execute("EXISTS", keys.EMBEDDED)) if server.queue else False
        findings: list[Finding] = []
        with storage_errors():
            groups = await server.redis.topology.server_groups()
        for group in groups:
            info = await _info(server.redis, group)
            findings += [NO_INFO] if info is None else findings_from_info(info, durable=server.logs and not embedded)
        if server.queue:
            findings += await _check_shard_count(server.redis)
        findings += findings_from_clocks(*await server.clock.sync())
        return list(dict.fromkeys(findings))  # the servers of a cluster usually have the same findings


NO_INFO = Finding(
    "info", "this user may not run INFO (ACL: +info), so version, maxmemory-policy and persistence were not checked"
)


async def _info(redis: Redis, group: str) -> dict[str, str] | None:
    """Return INFO; None if it is not allowed, by an ACL or because a managed service has removed the command."""
    try:
        text = await redis.info("default", group)
    except RedisError:
        return None
    except StorageUnavailable as error:
        if is_forbidden(error):
            return None
        raise
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def findings_from_info(info: Mapping[str, str], *, durable: bool) -> list[Finding]:
    """Return the findings from INFO. Missing fields are skipped, since compatible servers may omit them. `durable`: the
    server has the logs and must persist them; the queue can be rebuilt."""
    return [
        finding
        for finding in (_check_version(info), _check_eviction(info), _check_persistence(info) if durable else None)
        if finding is not None
    ]


def _check_version(info: Mapping[str, str]) -> Finding | None:
    # Valkey reports the version of Redis that it is compatible with, and its own version separately.
    name = "Valkey" if "valkey_version" in info else "Redis"
    offered, told = info.get("redis_version", ""), info.get(f"{name.lower()}_version", "")
    compatible, version = _version(offered), _version(told)
    if compatible is None or version is None:
        return None
    if compatible[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        message = f"Redis {offered} is too old, {oldest} or newer is required (XADD NOMKSTREAM)"
        return Finding("version", message, fatal=True)
    patched = PATCHED[name]
    branch, patch = version[:2], version[2]
    if branch > max(patched) or patch >= patched.get(branch, patch + 1):
        return None
    (major, minor), fixed = max(patched.items())
    return Finding(
        "version",
        f"{name} {told} is affected by CVE-2026-23479 and CVE-2026-23631, in commands used here, unless its packager "
        f"has backported the fixes; {name} {major}.{minor}.{fixed} is not affected",
    )


def _version(text: str) -> tuple[int, int, int] | None:
    parts = text.split(".")
    if len(parts) < 3 or not all(part.isdigit() for part in parts[:3]):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def _check_eviction(info: Mapping[str, str]) -> Finding | None:
    """Check the eviction policy even without a memory limit: one may be set later, during operation. Every key here has
    a lifetime, so `volatile-…` is no better than `allkeys-…`."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return Finding(
        "eviction",
        f"maxmemory-policy is {policy}, so Redis would evict generations that are running or being read; "
        "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)",
        fatal=True,
    )


def _check_persistence(info: Mapping[str, str]) -> Finding | None:
    if info.get("aof_enabled", "1") != "0":
        return None
    return Finding(
        "persistence",
        "it has no append-only file, so a restart loses queued and ended generations, not only the last second "
        "(set appendonly yes, appendfsync everysec)",
    )


async def _check_shard_count(queue: Redis) -> list[Finding]:
    """Check the number of shards, on which the stored data depends: with another number, a process would miss some."""
    ours = str(len(SHARDS)).encode()
    with suppress(StorageUnavailable):  # full, or temporarily read-only
        await queue.execute("SET", keys.SHARD_COUNT, ours, "NX", "PX", MONTH_MS)
        await queue.execute("PEXPIRE", keys.SHARD_COUNT, MONTH_MS)
    theirs = await queue.execute("GET", keys.SHARD_COUNT)
    if theirs in (None, ours):
        return []
    there, here = theirs.decode(errors="replace")[:20], ours.decode()
    message = f"the stored data has {there} shards, this version has {here}; use another database"
    return [Finding("shards", f"{message} ({keys.SHARD_COUNT})", fatal=True)]


async def mark_embedded(redis: Redis) -> None:
    """Mark a server as one that its owner runs without persistence on purpose."""
    await redis.execute("SET", keys.EMBEDDED, "1", "PX", MONTH_MS)


def findings_from_clocks(least: float, most: float) -> list[Finding]:
    """`least` and `most`: minimum and maximum by which Redis's clock is ahead of this machine's, in seconds."""
    off = least if least > SKEW else most if most < -SKEW else 0.0
    if not off:
        return []
    which = "behind" if off > 0 else "ahead of"
    return [Finding("clock", f"this machine's clock is {abs(off):.1f} s {which} the server's; one of the two is wrong")]

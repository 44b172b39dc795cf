"""Carries the events of all attempts of this process to Redis, over one connection to each server.

While one pipeline is under way the next gathers: idle, a token leaves at once; under load the calls get longer by
themselves. Everything may be sent again, since ids are explicit: after any trouble the same events go out under
the same ids, and the scripts skip what is there and say what is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import NamedTuple

from broker.concurrency.backoff import Backoff
from broker.ids import shard_of
from broker.redis.client import Argument, Reply, topology_of, without_password
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError, describe_error, is_out_of_memory, is_temporary
from broker.redis.topology import Topology
from broker.runtime.counters import ROUND_TRIPS, Buckets
from broker.settings.settings import Settings
from broker.store.commands import APPENDER_SCRIPTS, append_command, finish_command, restore_command, touch_command
from broker.store.store import new_epoch
from worker.attempt import CALL_BYTES, OURS, Attempt, Ending
from worker.claims import Claim
from worker.ended_attempts import EndedAttempts

PIPELINE_BYTES = 1 << 20
REPLY_TIMEOUT = 5.0
STORAGE_FULL = 30.0  # seconds of refusals after which an attempt fails instead of waiting; two leases at most
MOVING = 0.05  # seconds
FULL_PAUSE = 0.25  # seconds until a full Redis is asked again
log = logging.getLogger("tokencast.worker")


TOUCHING, RESTORING = -1, -2


class Call(NamedTuple):
    """One command under way. `cut` is the last seq it sends, or which of the others it is."""

    attempt: Attempt
    cut: int
    command: tuple[Argument, ...]


class Appender:
    """`begin` an attempt for each claim; `run` for ever beside them. One lane, and on a cluster one for each shard, so
    that a server's trouble stalls only what is on it."""

    def __init__(self, settings: Settings, servers: Topology | None = None) -> None:
        """`servers`: as the rest of the process knows them."""
        self._url = settings.logs_url
        self._servers = servers or topology_of(settings.logs_url)
        # Often enough that a cancel comes home at once, and that a lease never runs down.
        self._tick = min(0.5, settings.lease / 6)
        self._lanes = {
            group: ShardAppender(self, self._servers, group, settings, self._tick) for group in self._servers.groups
        }
        self._whole: bool | None = None
        self.flushes = Buckets(ROUND_TRIPS)

    @property
    def connected(self) -> bool:
        return any(lane.connected.is_set() for lane in self._lanes.values())

    async def ready(self) -> None:
        """Until connected."""
        waits = [asyncio.create_task(lane.connected.wait()) for lane in self._lanes.values()]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def begin(self, claim: Claim) -> Attempt:
        return self._lane(claim).begin(claim)

    def drop(self, attempt: Attempt) -> None:
        """Forgets an attempt, whatever it still has."""
        self._lane(attempt.claim).drop(attempt)

    def _lane(self, claim: Claim) -> ShardAppender:
        return self._lanes[self._servers.group(shard_of(claim.gid))]

    async def run(self) -> None:
        """Until cancelled. Redis may come and go."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_for_ever())
            tasks.create_task(self._servers.watch())
            for lane in self._lanes.values():
                tasks.create_task(lane.run())

    async def _tick_for_ever(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(self._tick / 2)
            for number, lane in enumerate(self._lanes.values()):
                lane.tick(idle_too=number == turn % len(self._lanes))

    def lost(self, why: str) -> None:
        """A lane has lost its connection, gets none, or is refused. Logged once a minute, until all are served."""
        self._servers.log_throttle.tell(log, f"events wait: Redis at {without_password(self._url)}: {why}")
        self._whole = False

    def found(self) -> None:
        """A lane is connected, and served."""
        if not self._whole and all(lane.connected.is_set() for lane in self._lanes.values()):
            self._whole = True
            self._servers.log_throttle.over()
            log.info("connected to Redis at %s", without_password(self._url))


class ShardAppender:
    """The attempts of the shards that one connection reaches."""

    def __init__(self, appender: Appender, servers: Topology, group: str, settings: Settings, tick: float) -> None:
        self._appender = appender
        self._servers = servers
        self._group = group
        self._lease_ms = int(settings.lease * 1000)
        self._max_output = settings.max_output
        self._tick = tick
        self._active: dict[Attempt, None] = {}
        self._waiting: dict[Attempt, None] = {}  # with something to send, the longest waiting first
        self._restoring: dict[Attempt, None] = {}  # not known to Redis, or not to be ours
        self._apart: set[Attempt] = set()  # with keys on two servers: their shard is moving
        self._lingering = EndedAttempts(tick)
        self._connection = 0  # number of the present one
        self._wake: asyncio.Future[None] | None = None
        self._touch = False
        # Back within a lease of Redis: for as long the reapers wait for us.
        self._backoff = Backoff(longest=min(2.0, settings.lease / 3))
        self.connected = asyncio.Event()

    def begin(self, claim: Claim) -> Attempt:
        attempt = Attempt(claim, self._notify, self._connection)
        self._active[attempt] = None
        return attempt

    def drop(self, attempt: Attempt) -> None:
        self._active.pop(attempt, None)
        self._waiting.pop(attempt, None)
        self._restoring.pop(attempt, None)
        self._apart.discard(attempt)

    def tick(self, *, idle_too: bool) -> None:
        """Time for touches; and for a look at the connection where there is nothing to touch, if `idle_too`."""
        self._lingering.forget_old()
        if idle_too or self._active or self._lingering:
            self._touch = True
            self._rouse()

    def _notify(self, attempt: Attempt) -> None:
        self._waiting[attempt] = None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._connect_and_serve()
            except (OSError, RespError) as error:
                if isinstance(error, TimeoutError):
                    self._servers.mark_suspect()
                self._unwell(describe_error(error))
            await self._backoff.wait()

    async def _connect_and_serve(self) -> None:
        connection = await self._servers.open(self._group)
        try:
            await self._load_scripts(connection)
            self._begin_connection()
            if not (self._active or self._waiting):  # else the first answer tells whether it takes anything
                self._well()
            while True:
                self._servers.check(connection.node)
                touching = self._touch
                calls = self._gather()
                if not calls:
                    if touching:  # an idle connection that broke says so only when it is used
                        await connection.call("PING", timeout=REPLY_TIMEOUT)
                        self._lingering.answered()
                    else:
                        self._wake = asyncio.get_running_loop().create_future()
                        await self._wake
                    continue
                sent = time.monotonic()
                replies = await connection.pipeline([call.command for call in calls], timeout=REPLY_TIMEOUT)
                self._appender.flushes.observe(time.monotonic() - sent)
                self._lingering.answered()
                refusal = self._settle(calls, replies)
                if refusal is None:
                    self._backoff.success()
                    if not self._restoring:  # else a ticket of what is about to be restored could be taken
                        self._well()
                elif refusal.kind == "NOSCRIPT":
                    await self._load_scripts(connection)
                elif is_out_of_memory(refusal):  # on this connection leases are kept and endings pass
                    self._unwell("it is full")
                    await asyncio.sleep(min(FULL_PAUSE, self._tick / 2))
                elif refusal.kind == "TRYAGAIN":  # a shard on its way to another server of a cluster
                    await asyncio.sleep(MOVING)
                else:
                    raise refusal
        finally:
            connection.close()

    def _well(self) -> None:
        if not self.connected.is_set():
            self.connected.set()
            self._appender.found()

    def _unwell(self, why: str) -> None:
        self.connected.clear()
        self._appender.lost(why)

    async def _load_scripts(self, connection: RespConnection) -> None:
        for script in APPENDER_SCRIPTS:
            await connection.call("SCRIPT", "LOAD", script.source, timeout=REPLY_TIMEOUT)

    def _gather(self) -> list[Call]:
        """What goes into the next pipeline: of each attempt one call, and the touches that are due."""
        calls = [Call(attempt, RESTORING, self._restore(attempt)) for attempt in self._restoring]
        room = PIPELINE_BYTES
        for attempt in self._waiting:
            if attempt in self._restoring or attempt.held:
                continue
            cut = attempt.next_cut()
            room -= min(attempt.behind, CALL_BYTES)
            ending = attempt.ending if cut == attempt.count else None
            command = self._finish(attempt, cut, ending) if ending else self._append(attempt, cut)
            calls.append(Call(attempt, cut, command))
            attempt.sent = max(attempt.sent, cut)
            if room <= 0:
                break
        if self._touch:
            self._touch = False
            self._gather_touches(calls)
        return calls

    def _gather_touches(self, calls: list[Call]) -> None:
        """For attempts that appended nothing lately, so that an ending from elsewhere comes home within a tick;
        now and then for the others too, since an append does not renew the lease."""
        now, tick = time.monotonic(), self._tick * 0.9
        for attempt in self._active:
            quiet, untouched = now - attempt.heard_at, now - attempt.touched_at
            if (quiet >= tick / 2 and untouched >= tick) or untouched >= self._lease_ms / 6000:
                attempt.touched_at = now
                gid, own = attempt.claim.gid, attempt.claim.own
                command = touch_command(gid, own, self._lease_ms, with_live=attempt not in self._apart)
                calls.append(Call(attempt, TOUCHING, command))

    def _append(self, attempt: Attempt, cut: int) -> tuple[Argument, ...]:
        claim, acked = attempt.claim, attempt.acked
        tokens = attempt.tokens_until(cut)
        first_token = tokens > 0 and not attempt.tokens_until(acked)
        items = attempt.items[3 * acked : 3 * cut]
        return append_command(
            claim.gid, claim.own, claim.attempt, acked + 1, tokens, self._max_output, first_token, items
        )

    def _finish(self, attempt: Attempt, cut: int, ending: Ending) -> tuple[Argument, ...]:
        claim, acked = attempt.claim, attempt.acked
        return finish_command(
            claim.gid,
            claim.own,
            claim.attempt,
            acked + 1,
            status=ending.status,
            finish_reason=ending.finish_reason,
            usage=ending.usage,
            error=ending.error,
            choices=ending.choices,
            tokens=attempt.tokens_until(cut),
            items=attempt.items[3 * acked : 3 * cut],
        )

    def _restore(self, attempt: Attempt) -> tuple[Argument, ...]:
        """A server that had it on this very connection has not gone back: there it was deleted, or has expired."""
        claim = attempt.claim
        known_at = attempt.known_at if attempt.known_on != self._connection else 0
        return restore_command(
            claim.gid,
            claim.own,
            claim.attempt,
            epoch=attempt.epoch,
            new_epoch=new_epoch(),
            lease_ms=self._lease_ms,
            known_at_ms=known_at,
            created_data=claim.created,
            first_event=claim.first_event,
            meta=claim.meta,
        )

    def _settle(self, calls: list[Call], replies: list[Reply]) -> RespError | None:
        """Takes in all replies; the refusal that asks for another connection or for the scripts, if there is one."""
        refusal: RespError | None = None
        now = time.monotonic()
        for call, reply in zip(calls, replies, strict=True):
            attempt = call.attempt
            if call.cut == TOUCHING and (attempt not in self._active or attempt in self._restoring):
                continue  # touched behind its own ending, or its loss is known
            if isinstance(reply, RespError):
                if call.cut == TOUCHING:
                    self._touch_again(attempt, reply)
                refusal = self._refused(attempt, reply, now) or refusal
                continue
            if call.cut == TOUCHING:
                self._apart.discard(attempt)
            if call.cut >= 0:
                attempt.heard_at = now
            outcome = reply[0]
            if outcome == b"OK":
                attempt.known_on = self._connection
                if call.cut == TOUCHING:
                    attempt.known_at = reply[2]
            if call.cut == RESTORING:
                self._restored(attempt, reply)
            elif outcome in (b"LOST", b"FENCED"):
                self._restoring[attempt] = None
            elif outcome == b"OK":
                self._accepted(call, reply[1])
            elif outcome == b"GAP":
                attempt.acknowledge(reply[1])
                self._waiting[attempt] = None
            elif outcome == b"CLOSED" and attempt.ending is not None and attempt.sent == attempt.count:
                self._ended(attempt)  # by ourselves, most likely: the reply was lost
            else:
                self._end(attempt, outcome.decode())
        return refusal

    def _touch_again(self, attempt: Attempt, error: RespError) -> None:
        """At the next tick, by the keys that must be together."""
        attempt.touched_at = float("-inf")
        if error.kind == "TRYAGAIN":
            self._apart.add(attempt)

    def _accepted(self, call: Call, last: int) -> None:
        attempt, cut, _ = call
        if attempt.ending is not None and cut == attempt.count and last >= cut:
            self._ended(attempt)
            return
        attempt.acknowledge(last)
        self._waiting.pop(attempt, None)
        if not attempt.complete:
            self._waiting[attempt] = None  # behind the others

    def _restored(self, attempt: Attempt, reply: Reply) -> None:
        """Redis knows it again, as ours, up to some event; or it is somebody else's, or past its end."""
        if attempt not in self._restoring:
            return  # dropped while its call was under way
        del self._restoring[attempt]
        if reply[0] != b"OK":
            self._end(attempt, reply[0].decode())
            return
        log.info("%s: restored", attempt.claim.gid)
        attempt.epoch = reply[2]
        attempt.acknowledge(reply[1])
        self._waiting[attempt] = None

    def _refused(self, attempt: Attempt, error: RespError, now: float) -> RespError | None:
        """A refusal that will pass keeps everything; one that will not ends the attempt."""
        kind = error.kind
        if kind == "NOSCRIPT":
            return error
        if is_out_of_memory(error):
            attempt.refused_since = attempt.refused_since or now
            if now - attempt.refused_since > min(STORAGE_FULL, self._lease_ms / 500):
                self._end(attempt, "FULL")
            return error
        if is_temporary(error):
            return error
        log.error("%s: Redis refuses an append: %s", attempt.claim.gid, kind)
        self._end(attempt, "ERROR")
        return None

    def _end(self, attempt: Attempt, reason: str) -> None:
        self._waiting.pop(attempt, None)
        if reason not in OURS:
            self._active.pop(attempt, None)
        attempt.end(reason)

    def _ended(self, attempt: Attempt) -> None:
        self.drop(attempt)
        attempt.acknowledge(attempt.count)
        attempt.settle()
        self._lingering.add(attempt)

    def _begin_connection(self) -> None:
        """Another server may have taken over, that never heard of the endings."""
        self._connection += 1
        self._lingering.connected()
        self._waiting.update(dict.fromkeys(self._lingering.take_all()))

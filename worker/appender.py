"""Appends the events of all attempts of this process to Redis, over one connection per server.

While one pipeline is in flight, the next one is collected: without load a token is sent at once, and under load the
calls grow by themselves. Every call may be repeated, because ids are explicit: after an error the same events are sent
under the same ids, and the scripts skip events that are present and report events that are missing.
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
from worker.attempt import FAILING_REPLIES, MAX_CALL_BYTES, Attempt, Ending
from worker.claims import Claim
from worker.ended_attempts import EndedAttempts

PIPELINE_BYTES = 1 << 20
REPLY_TIMEOUT = 5.0
STORAGE_FULL_TIMEOUT = 30.0  # seconds of "out of memory" replies after which an attempt fails; two leases at most
MOVING_PAUSE = 0.05  # seconds until the next try while a cluster moves a shard
FULL_PAUSE = 0.25  # seconds until the next try if Redis is full
log = logging.getLogger("tokencast.worker")


TOUCHING, RESTORING = -1, -2


class Call(NamedTuple):
    """One command in flight. `last`: the last seq that it sends, or TOUCHING or RESTORING."""

    attempt: Attempt
    last: int
    command: tuple[Argument, ...]


class Appender:
    """Creates an attempt for each claim (`open`) and appends the events of all of them (`run`). There is one
    `ShardAppender`, on a cluster one per shard, so that an unreachable server delays only its own shards."""

    def __init__(self, settings: Settings, servers: Topology | None = None) -> None:
        """`servers`: topology that the process shares."""
        self._url = settings.logs_url
        self._servers = servers or topology_of(settings.logs_url)
        # Short enough that a cancellation is noticed soon, and that no lease expires.
        self._tick = min(0.5, settings.lease / 6)
        self._shards = {
            group: ShardAppender(self, self._servers, group, settings, self._tick) for group in self._servers.groups
        }
        self._all_connected: bool | None = None
        self.flushes = Buckets(ROUND_TRIPS)

    @property
    def connected(self) -> bool:
        return any(shard.connected.is_set() for shard in self._shards.values())

    async def ready(self) -> None:
        """Wait until connected."""
        waits = [asyncio.create_task(shard.connected.wait()) for shard in self._shards.values()]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def open(self, claim: Claim) -> Attempt:
        return self._shard(claim).open(claim)

    def discard(self, attempt: Attempt) -> None:
        """Forget an attempt, including its unsent events."""
        self._shard(attempt.claim).discard(attempt)

    def _shard(self, claim: Claim) -> ShardAppender:
        return self._shards[self._servers.group(shard_of(claim.gid))]

    async def run(self) -> None:
        """Run until cancelled; reconnects if Redis is unreachable."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_forever())
            tasks.create_task(self._servers.watch())
            for shard in self._shards.values():
                tasks.create_task(shard.run())

    async def _tick_forever(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(self._tick / 2)
            for number, shard in enumerate(self._shards.values()):
                shard.tick(idle_too=number == turn % len(self._shards))

    def report_failure(self, reason: str) -> None:
        """Log that a shard's connection failed or its commands were rejected: once a minute, until all shards work."""
        self._servers.log_throttle.tell(log, f"events wait: Redis at {without_password(self._url)}: {reason}")
        self._all_connected = False

    def report_connected(self) -> None:
        """Log the recovery, once all shards are connected and their commands accepted."""
        if not self._all_connected and all(shard.connected.is_set() for shard in self._shards.values()):
            self._all_connected = True
            self._servers.log_throttle.over()
            log.info("connected to Redis at %s", without_password(self._url))


class ShardAppender:
    """Appends the attempts of the shards that one connection reaches."""

    def __init__(self, appender: Appender, servers: Topology, group: str, settings: Settings, tick: float) -> None:
        self._appender = appender
        self._servers = servers
        self._group = group
        self._lease_ms = int(settings.lease * 1000)
        self._max_output = settings.max_output
        self._tick = tick
        self._active: dict[Attempt, None] = {}
        self._waiting: dict[Attempt, None] = {}  # attempts with unsent events, in the order of their waiting time
        self._restoring: dict[Attempt, None] = {}  # attempts that Redis does not know, or not as ours
        self._migrating: set[Attempt] = set()  # attempts with keys on two servers, because their shard is moving
        self._ended_attempts = EndedAttempts(tick)
        self._connection = 0  # number of the current connection
        self._idle: asyncio.Future[None] | None = None
        self._touch_due = False
        # Reconnect within a lease after Redis is back: reapers wait that long.
        self._backoff = Backoff(longest=min(2.0, settings.lease / 3))
        self.connected = asyncio.Event()

    def open(self, claim: Claim) -> Attempt:
        attempt = Attempt(claim, self._notify, self._connection)
        self._active[attempt] = None
        return attempt

    def discard(self, attempt: Attempt) -> None:
        self._active.pop(attempt, None)
        self._waiting.pop(attempt, None)
        self._restoring.pop(attempt, None)
        self._migrating.discard(attempt)

    def tick(self, *, idle_too: bool) -> None:
        """Schedule touches; with `idle_too`, also a check of the connection if there is nothing to touch."""
        self._ended_attempts.expire()
        if idle_too or self._active or self._ended_attempts:
            self._touch_due = True
            self._wake_up()

    def _notify(self, attempt: Attempt) -> None:
        self._waiting[attempt] = None
        self._wake_up()

    def _wake_up(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def run(self) -> None:
        """Connect and serve until cancelled."""
        while True:
            try:
                await self._connect_and_serve()
            except (OSError, RespError) as error:
                if isinstance(error, TimeoutError):
                    self._servers.mark_suspect()
                self._report_failure(describe_error(error))
            await self._backoff.wait()

    async def _connect_and_serve(self) -> None:
        connection = await self._servers.open(self._group)
        try:
            await self._load_scripts(connection)
            self._resend_endings()
            if not (self._active or self._waiting):  # otherwise the first reply shows whether commands are accepted
                self._report_connected()
            while True:
                self._servers.check(connection.node)
                touching = self._touch_due
                calls = self._collect_calls()
                if not calls:
                    if touching:  # a broken idle connection is noticed only when it is used
                        await connection.call("PING", timeout=REPLY_TIMEOUT)
                        self._ended_attempts.count_contact()
                    else:
                        self._idle = asyncio.get_running_loop().create_future()
                        await self._idle
                    continue
                sent = time.monotonic()
                replies = await connection.pipeline([call.command for call in calls], timeout=REPLY_TIMEOUT)
                self._appender.flushes.observe(time.monotonic() - sent)
                self._ended_attempts.count_contact()
                refusal = self._process_replies(calls, replies)
                if refusal is None:
                    self._backoff.success()
                    if not self._restoring:  # otherwise a ticket could be taken of a generation about to be restored
                        self._report_connected()
                elif refusal.kind == "NOSCRIPT":
                    await self._load_scripts(connection)
                elif is_out_of_memory(refusal):  # keep the connection: touches and terminal events still pass
                    self._report_failure("out of memory")
                    await asyncio.sleep(min(FULL_PAUSE, self._tick / 2))
                elif refusal.kind == "TRYAGAIN":  # a cluster is moving the shard to another server
                    await asyncio.sleep(MOVING_PAUSE)
                else:
                    raise refusal
        finally:
            connection.close()

    def _report_connected(self) -> None:
        if not self.connected.is_set():
            self.connected.set()
            self._appender.report_connected()

    def _report_failure(self, reason: str) -> None:
        self.connected.clear()
        self._appender.report_failure(reason)

    async def _load_scripts(self, connection: RespConnection) -> None:
        for script in APPENDER_SCRIPTS:
            await connection.call("SCRIPT", "LOAD", script.source, timeout=REPLY_TIMEOUT)

    def _collect_calls(self) -> list[Call]:
        """Return the calls of the next pipeline: one per waiting attempt, and the touches that are due."""
        calls = [Call(attempt, RESTORING, self._restore_command(attempt)) for attempt in self._restoring]
        room = PIPELINE_BYTES
        for attempt in self._waiting:
            if attempt in self._restoring or attempt.awaits_ending:
                continue
            last = attempt.next_batch()
            room -= min(attempt.pending_bytes, MAX_CALL_BYTES)
            ending = attempt.ending if last == attempt.count else None
            command = self._finish_command(attempt, last, ending) if ending else self._append_command(attempt, last)
            calls.append(Call(attempt, last, command))
            attempt.sent = max(attempt.sent, last)
            if room <= 0:
                break
        if self._touch_due:
            self._touch_due = False
            self._collect_touches(calls)
        return calls

    def _collect_touches(self, calls: list[Call]) -> None:
        """Add touches for attempts that appended nothing lately, so that an end from elsewhere is noticed within a
        tick; less often also for the others, because an append does not renew the lease."""
        now, tick = time.monotonic(), self._tick * 0.9
        for attempt in self._active:
            quiet, untouched = now - attempt.replied_at, now - attempt.touched_at
            if (quiet >= tick / 2 and untouched >= tick) or untouched >= self._lease_ms / 6000:
                attempt.touched_at = now
                gid, own, live = attempt.claim.gid, attempt.claim.own, attempt not in self._migrating
                command = touch_command(gid, own, self._lease_ms, with_live=live, begun=attempt.begun)
                calls.append(Call(attempt, TOUCHING, command))

    def _append_command(self, attempt: Attempt, last: int) -> tuple[Argument, ...]:
        claim, acked = attempt.claim, attempt.acked
        tokens = attempt.tokens_until(last)
        first_token = tokens > 0 and not attempt.tokens_until(acked)
        items = attempt.items[3 * acked : 3 * last]
        return append_command(
            claim.gid, claim.own, claim.attempt, acked + 1, tokens, self._max_output, first_token, items
        )

    def _finish_command(self, attempt: Attempt, last: int, ending: Ending) -> tuple[Argument, ...]:
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
            tokens=attempt.tokens_until(last),
            items=attempt.items[3 * acked : 3 * last],
        )

    def _restore_command(self, attempt: Attempt) -> tuple[Argument, ...]:
        """Return the command that restores an attempt. A server that had it on the current connection lost no data:
        there the generation was deleted or has expired, and `known_at` is 0."""
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

    def _process_replies(self, calls: list[Call], replies: list[Reply]) -> RespError | None:
        """Process all replies. Return the error that requires another connection or the scripts, if there is one."""
        refusal: RespError | None = None
        now = time.monotonic()
        for call, reply in zip(calls, replies, strict=True):
            attempt = call.attempt
            if call.last == TOUCHING and (attempt not in self._active or attempt in self._restoring):
                continue  # touched after its end, or its loss is known
            if isinstance(reply, RespError):
                if call.last == TOUCHING:
                    self._retry_touch(attempt, reply)
                refusal = self._on_error(attempt, reply, now) or refusal
                continue
            if call.last == TOUCHING:
                self._migrating.discard(attempt)
            if call.last >= 0:
                attempt.replied_at = now
            outcome = reply[0]
            if outcome == b"OK":
                attempt.known_on = self._connection
                if call.last == TOUCHING:
                    attempt.known_at = reply[2]
            if call.last == RESTORING:
                self._on_restored(attempt, reply)
            elif outcome in (b"LOST", b"FENCED"):
                self._restoring[attempt] = None
            elif outcome == b"OK":
                self._on_accepted(call, reply[1])
            elif outcome == b"GAP":
                attempt.acknowledge(reply[1])
                self._waiting[attempt] = None
            elif outcome == b"CLOSED" and attempt.ending is not None and attempt.sent == attempt.count:
                self._confirm_ending(attempt)  # most likely by this worker: the reply was lost
            else:
                self._end_attempt(attempt, outcome.decode())
        return refusal

    def _retry_touch(self, attempt: Attempt, error: RespError) -> None:
        """Touch an attempt at the next tick; after TRYAGAIN only with the keys that are on one server."""
        attempt.touched_at = float("-inf")
        if error.kind == "TRYAGAIN":
            self._migrating.add(attempt)

    def _on_accepted(self, call: Call, acked: int) -> None:
        attempt, last, _ = call
        if attempt.ending is not None and last == attempt.count and acked >= last:
            self._confirm_ending(attempt)
            return
        attempt.acknowledge(acked)
        self._waiting.pop(attempt, None)
        if not attempt.all_sent:
            self._waiting[attempt] = None  # after the others

    def _on_restored(self, attempt: Attempt, reply: Reply) -> None:
        """Handle the reply to a restore: Redis has the attempt again, up to some event, or the attempt is over."""
        if attempt not in self._restoring:
            return  # dropped while its call was in flight
        del self._restoring[attempt]
        if reply[0] != b"OK":
            self._end_attempt(attempt, reply[0].decode())
            return
        log.info("%s: restored", attempt.claim.gid)
        attempt.epoch = reply[2]
        attempt.acknowledge(reply[1])
        self._waiting[attempt] = None

    def _on_error(self, attempt: Attempt, error: RespError, now: float) -> RespError | None:
        """Handle an error reply: a transient one changes nothing and is returned, a lasting one ends the attempt."""
        kind = error.kind
        if kind == "NOSCRIPT":
            return error
        if is_out_of_memory(error):
            attempt.refused_since = attempt.refused_since or now
            if now - attempt.refused_since > min(STORAGE_FULL_TIMEOUT, self._lease_ms / 500):
                self._end_attempt(attempt, "FULL")
            return error
        if is_temporary(error):
            return error
        log.error("%s: Redis rejected an append: %s", attempt.claim.gid, kind)
        self._end_attempt(attempt, "ERROR")
        return None

    def _end_attempt(self, attempt: Attempt, reason: str) -> None:
        self._waiting.pop(attempt, None)
        if reason not in FAILING_REPLIES:
            self._active.pop(attempt, None)
        attempt.abort(reason)

    def _confirm_ending(self, attempt: Attempt) -> None:
        self.discard(attempt)
        attempt.acknowledge(attempt.count)
        attempt.confirm_ending()
        self._ended_attempts.add(attempt)

    def _resend_endings(self) -> None:
        """Send all recent terminal events again: another server, which lacks them, may have taken over."""
        self._connection += 1
        self._ended_attempts.start_contact()
        self._waiting.update(dict.fromkeys(self._ended_attempts.pop_all()))

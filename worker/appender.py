"""Carries the events of all attempts of this process to Redis, over one connection.

While one pipeline is under way the next gathers: idle, a token leaves at once; under load the calls get longer by
themselves. Everything may be sent again, since ids are explicit: after any trouble the same events go out under
the same ids, and the scripts skip what is there and say what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from typing import NamedTuple

from broker import keys
from broker.connection import Argument, Reply, Script, without_password
from broker.ids import shard_of
from broker.resp import RespConnection, RespError
from broker.settings import Settings
from broker.store import lifecycle_keys, new_epoch
from worker.attempt import CALL_BYTES, OURS, Attempt, Ending
from worker.claims import Claim

APPEND, FINISH, TOUCH, RESTORE = Script("append"), Script("finish"), Script("touch"), Script("restore")
PIPELINE_BYTES = 1 << 20
REPLY_TIMEOUT = 5.0
STORAGE_FULL = 30.0  # seconds of refusals after which an attempt fails instead of waiting
LINGER = 15.0  # seconds for which an ended attempt is kept, for a Redis that forgets its ending
LINGER_BYTES = 64 << 20
TRANSIENT = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "BUSY", "TRYAGAIN", "MOVED", "NOAUTH"}
)
log = logging.getLogger("tokencast.worker")


TOUCHING, RESTORING = -1, -2


class Call(NamedTuple):
    """One command under way. `cut` is the last seq it sends, or which of the others it is."""

    attempt: Attempt
    cut: int
    command: tuple[Argument, ...]


class Appender:
    """`begin` an attempt for each claim; `run` for ever beside them."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.logs_url
        self._lease_ms = int(settings.lease * 1000)
        self._max_output = settings.max_output
        # Often enough that a cancel comes home at once, and that a lease never runs down.
        self._tick = min(0.5, settings.lease / 6)
        self._active: dict[Attempt, None] = {}
        self._waiting: dict[Attempt, None] = {}  # with something to send, the longest waiting first
        self._restoring: dict[Attempt, None] = {}  # not known to Redis, or not to be ours
        self._lingering: deque[tuple[float, Attempt]] = deque()
        self._lingering_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._touch = False
        self._connected = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def ready(self) -> None:
        """Until connected."""
        await self._connected.wait()

    def begin(self, claim: Claim) -> Attempt:
        attempt = Attempt(claim, self._notify)
        self._active[attempt] = None
        return attempt

    def drop(self, attempt: Attempt) -> None:
        """Forgets an attempt, whatever it still has."""
        self._active.pop(attempt, None)
        self._waiting.pop(attempt, None)
        self._restoring.pop(attempt, None)

    def _notify(self, attempt: Attempt) -> None:
        self._waiting[attempt] = None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Until cancelled. Redis may come and go."""
        ticker = asyncio.create_task(self._tick_for_ever())
        failures = 0
        try:
            while True:
                started = time.monotonic()
                try:
                    await self._connect_and_serve()
                except (OSError, RespError) as error:
                    failures = 0 if time.monotonic() - started > 5 else failures + 1
                    if self.connected or failures == 1:
                        kind = error.kind if isinstance(error, RespError) else type(error).__name__
                        log.warning("events wait: Redis at %s: %s", without_password(self._url), kind)
                    self._connected.clear()
                await asyncio.sleep(min(2.0, 0.05 * 2**failures) * random.uniform(0.5, 1))
        finally:
            ticker.cancel()

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._tick / 2)
            self._touch = True
            self._rouse()
            self._forget_lingering(time.monotonic())

    async def _connect_and_serve(self) -> None:
        connection = await RespConnection.open(self._url)
        try:
            await self._load_scripts(connection)
            if not self.connected:
                log.info("connected to Redis at %s", without_password(self._url))
            self._connected.set()
            self._send_endings_again()
            while True:
                touching = self._touch
                calls = self._gather()
                if not calls:
                    if touching:  # an idle connection that broke says so only when it is used
                        await connection.call("PING", timeout=REPLY_TIMEOUT)
                    else:
                        self._wake = asyncio.get_running_loop().create_future()
                        await self._wake
                    continue
                replies = await connection.pipeline([call.command for call in calls], timeout=REPLY_TIMEOUT)
                refusal = self._settle(calls, replies)
                if refusal is not None:
                    if refusal.kind != "NOSCRIPT":
                        raise refusal
                    await self._load_scripts(connection)
        finally:
            connection.close()

    async def _load_scripts(self, connection: RespConnection) -> None:
        for script in (APPEND, FINISH, TOUCH, RESTORE):
            await connection.call("SCRIPT", "LOAD", script.source, timeout=REPLY_TIMEOUT)

    def _gather(self) -> list[Call]:
        """What goes into the next pipeline: of each attempt one call, and the touches that are due."""
        calls = [Call(attempt, RESTORING, self._restore(attempt)) for attempt in self._restoring]
        room = PIPELINE_BYTES
        for attempt in self._waiting:
            if attempt in self._restoring:
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
                keys_ = (keys.meta(gid), keys.log(gid), keys.live(shard_of(gid)))
                calls.append(Call(attempt, TOUCHING, ("EVALSHA", TOUCH.sha, 3, *keys_, gid, own, self._lease_ms)))

    def _append(self, attempt: Attempt, cut: int) -> tuple[Argument, ...]:
        claim, acked = attempt.claim, attempt.acked
        tokens = attempt.tokens_until(cut)
        first_token = "1" if tokens and not attempt.tokens_until(acked) else "0"
        return (
            *("EVALSHA", APPEND.sha, 2, keys.meta(claim.gid), keys.log(claim.gid)),
            *(claim.own, f"{claim.attempt}-", acked + 1, tokens, self._max_output, first_token),
            *attempt.items[3 * acked : 3 * cut],
        )

    def _finish(self, attempt: Attempt, cut: int, ending: Ending) -> tuple[Argument, ...]:
        claim, acked = attempt.claim, attempt.acked
        return (
            *("EVALSHA", FINISH.sha, 5, *lifecycle_keys(claim.gid)),
            *(claim.gid, claim.own, f"{claim.attempt}-", acked + 1, ending.status, ending.finish_reason),
            *(ending.usage, ending.error, ending.choices, attempt.tokens_until(cut)),
            *attempt.items[3 * acked : 3 * cut],
        )

    def _restore(self, attempt: Attempt) -> tuple[Argument, ...]:
        claim = attempt.claim
        return (
            *("EVALSHA", RESTORE.sha, 7, *claim.keys),
            *(claim.gid, claim.own, claim.attempt, attempt.epoch, new_epoch(), self._lease_ms),
            *(claim.created, *claim.first_event),
            *(part for field in claim.meta.items() for part in field),
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
                refusal = self._refused(attempt, reply, now) or refusal
                continue
            if call.cut >= 0:
                attempt.heard_at = now
            outcome = reply[0]
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
        if kind == "OOM" or "-OOM " in str(error):  # Redis 6 wraps it
            attempt.refused_since = attempt.refused_since or now
            if now - attempt.refused_since > STORAGE_FULL:
                self._end(attempt, "FULL")
            return error
        if kind in TRANSIENT:
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
        self._lingering.append((time.monotonic() + LINGER, attempt))
        self._lingering_bytes += attempt.size

    def _send_endings_again(self) -> None:
        """After a reconnect: another server may have taken over that never heard of them."""
        for _, attempt in self._lingering:
            self._waiting[attempt] = None
        self._lingering.clear()
        self._lingering_bytes = 0

    def _forget_lingering(self, now: float) -> None:
        lingering = self._lingering
        while lingering and (lingering[0][0] < now or self._lingering_bytes > LINGER_BYTES):
            self._lingering_bytes -= lingering.popleft()[1].size

"""The world of the model: one server, two gateways, three workers, their followers, and operations on them.

Each operation is one step. After it the world runs until it is idle, and all invariants are checked. The random machine
(machine.py) calls the operations.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import broker.broker
import broker.fanout.backfill
import broker.fanout.buffer
import broker.fanout.hub
import broker.fanout.reader
import broker.fanout.reader_pool
import broker.fanout.scheduler
import broker.ids
import broker.queue.reaper
import broker.store.data_loss
import broker.store.store
import worker.attempt
import worker.claims
import worker.generate
from broker.queue import commands as queue_commands
from broker.queue.commands import UpstreamLimits
from broker.queue.reaper import Reaper
from broker.queue.tickets import Queue
from broker.redis.client import topology_of
from broker.redis.continuity import Continuity
from broker.settings.settings import Settings
from broker.store import keys
from broker.store.commands import RESTORE, TOUCH
from broker.store.data_loss import ServerIdentity
from tests.model.oracle import ChatReader, Violation
from tests.model.processes import (
    Connection,
    CountedRedis,
    Follower,
    Gateway,
    Run,
    SteppedReader,
    Worker,
    is_error,
    load_scripts,
)
from tests.model.storage import Snapshot, Storage
from tests.model.truth import MAX_ATTEMPTS, Truth, check
from worker.appender import Call
from worker.attempt import Attempt

TENANT = "default"
LEASE = 15.0
RETENTION = 86_400.0
HOUR_MS = 3_600_000
LOOK = 600.0
"""Seconds after which a reaper looks at a waiting generation."""


class Clock:
    """Replaces the module `time` in code that measures durations. It follows only the model's time, so that a schedule
    has the same course on a loaded machine."""

    def __init__(self, time: Any) -> None:
        self._time = time
        self._start = time.monotonic()
        self.offset = 0.0

    def monotonic(self) -> float:
        return self._start + self.offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._time, name)


class SeededSecrets:
    """Replaces the module `secrets`, so that a schedule is reproducible."""

    def __init__(self) -> None:
        self.seed()

    def seed(self) -> None:
        self._random = random.Random(0)

    def randbelow(self, n: int) -> int:
        return self._random.randrange(n)

    def randbits(self, n: int) -> int:
        return self._random.getrandbits(n)

    def token_hex(self, n: int) -> str:
        return self._random.randbytes(n).hex()


SECRETS = SeededSecrets()


class AlwaysObserved(Continuity):
    """A reaper's observation of the model's server, whose clock advances without real time: always complete."""

    def observe(self, server: bytes, clock: float, sent: float, received: float) -> bool:
        return False

    def duration(self) -> float:
        return 1e6

    def deadline(self) -> float:
        return time.time() + 1e6


class Servers:
    """Replaces the identity of the server: another one after each loss."""

    def __init__(self) -> None:
        self.number = 0

    async def of(self, *_: Any) -> ServerIdentity:
        return ServerIdentity(b"%d" % self.number, float("inf"))


SERVERS = Servers()
CLOCK = Clock(time)


@contextmanager
def small_limits() -> Iterator[None]:
    """Small pages, segments and calls, so that a text of ten chunks needs several of each; stepped readers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker.fanout.reader_pool, "LogReader", SteppedReader)
        patch.setattr(broker.fanout.hub, "HIGH_WATER", 400)
        patch.setattr(broker.fanout.reader, "COUNT", 4)
        # A delivery is never interrupted on a slow machine: only the schedule determines the course.
        patch.setattr(broker.fanout.scheduler, "SLICE_SECONDS", 3600.0)
        patch.setattr(broker.fanout.buffer, "SEGMENT_BYTES", 300)
        for module in (broker.store.data_loss, broker.store.store):  # both measure durations
            patch.setattr(module, "time", CLOCK)
        patch.setattr(broker.store.data_loss, "server_identity", SERVERS.of)
        patch.setattr(worker.attempt, "MAX_CALL_EVENTS", 3)
        patch.setattr(worker.generate, "BEGIN_WAIT", 1e6)  # the schedule determines when an attempt begins
        for module in (broker.ids, broker.store.commands, broker.store.store, worker.claims):
            patch.setattr(module, "secrets", SECRETS)
        for module in (broker.fanout.backfill, broker.broker, broker.store.store):
            patch.setattr(module, "PAGE", 3)
        yield


class World:
    """Created once per server; `begin` resets it."""

    def __init__(self, url: str, port: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.settings = Settings(
            REDIS_URL=url, lease=LEASE, retention=RETENTION, max_attempts=MAX_ATTEMPTS, models=["*"]
        )  # pyright: ignore
        self.storage = Storage(port)
        self.redis = self.loop.run_until_complete(self._connect(url))

    async def _connect(self, url: str) -> CountedRedis:
        return CountedRedis(url, topology_of(url))

    def close(self) -> None:
        self.loop.run_until_complete(self.redis.close())
        self.storage.close()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    # --- one example --------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        self.storage.call("FLUSHALL")
        self.storage.elapsed = 0
        SECRETS.seed()
        load_scripts(self.storage)
        self.truths: dict[str, Truth] = {}
        self.snapshots: list[Snapshot] = []
        self.followers: list[Follower] = []
        self.ghosts: list[Call] = []
        self.numbers = self.releases = 0
        self.unswept = 0.0
        self.rewound = False
        self.steps: list[str] = []
        self.gateways = [self._gateway(0), self._gateway(1)]
        self.workers = [self._worker() for _ in range(3)]
        self.everyone = list(self.workers)
        self.reaper = Reaper(self.redis, Queue(self.redis), self.settings)
        self.reaper.continuity = dict.fromkeys(self.reaper.continuity, AlwaysObserved(0))
        await self._identify_server()

    async def end(self) -> None:
        for follower in self.followers:
            if follower.connection is not None:
                await follower.connection.leave()
        for one in self.everyone:
            await one.crash()
        for gateway in self.gateways:
            await gateway.hub.close()

    def _gateway(self, number: int) -> Gateway:
        return Gateway(self.redis, self.settings, cache_bytes=1 << 20 if number == 0 else 1)

    async def _identify_server(self) -> None:
        """Report the server's identity to the gateways, as their reapers do."""
        for gateway in self.gateways:
            for group in self.redis.topology.groups:
                gateway.broker.store.data_loss.observe_server(group, await SERVERS.of())

    def _worker(self) -> Worker:
        return Worker(self.redis, self.storage, self.settings, self._number)

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    async def settle(self) -> None:
        """Run the event loop until it is idle."""
        idle = 0
        while idle < 16:
            await asyncio.sleep(0)
            idle = 0 if self.redis.busy else idle + 1

    async def step(self, op: str, work: Coroutine[Any, Any, Any] | None = None) -> Any:
        """Run an operation, wait until the world is idle, and check the invariants."""
        self.steps.append(op)
        result = await work if work is not None else None
        await self.settle()
        self.look(op.partition(" ")[0])
        return result

    def look(self, op: str) -> None:
        for one in self.everyone:
            for run in one.runs:
                truth = self.truths.get(run.attempt.claim.gid)
                if truth is not None:
                    truth.runs.setdefault(run.attempt.claim.attempt, run)
        seen = self.storage.look(list(self.truths), TENANT)
        check(not self.storage.without_lifetime, f"keys without a lifetime: {self.storage.without_lifetime}")
        for gid, truth in self.truths.items():
            truth.look(seen[gid], op, self.releases)
        for follower in self.followers:
            self._look_at(follower)

    # --- followers ----------------------------------------------------------------------------------------------

    def _look_at(self, follower: Follower) -> None:
        connection, truth = follower.connection, self.truths[follower.gid]
        if connection is None:
            return
        reader = follower.reader
        try:
            was_over = reader.over
            if connection.status in (0, 200):
                reader.feed(connection.take())
            self._judge(follower, truth, was_over=was_over)
            if connection.task.done():
                connection.task.result()
                follower.connection = None
                if connection.complete:
                    reader.closed(connection.status)
                    self._answered(follower, truth, connection.status)
        except Violation as violation:
            history = "\n    ".join(reader.history)
            raise Violation(f"{follower}: {violation}\n    {history}") from None

    def _judge(self, follower: Follower, truth: Truth, *, was_over: bool) -> None:
        """Check that the data received by a reader is true."""
        reader = follower.reader
        if isinstance(reader, ChatReader):
            if reader.done and not was_over:
                self._is_whole(truth, reader.shown.pieces)
            return
        check(not reader.gaps or truth.trimmed, "a gap, but nothing was trimmed")
        check(not reader.synthetic or truth.trimmed or self.rewound, "a synthetic reset, but nothing was lost")
        if was_over or not reader.over:
            return
        follower.done = True
        if reader.gone:
            check(truth.missing or truth.deleted, "gone, but the generation exists")
            return
        name, data = reader.ending
        if name == "completed" and not reader.shown.partial:
            self._is_whole(truth, reader.shown.pieces)
        if follower.era == truth.era:
            truth.endings.setdefault((name, data), follower.number)
            check(len(truth.endings) == 1, f"followers see different endings: {truth.endings}")
            if truth.ending is not None:
                check((name, data) == truth.ending, f"a follower saw {name}, the log has {truth.ending}")

    @staticmethod
    def _is_whole(truth: Truth, shown: list[tuple[int, int]]) -> None:
        known = [run for run in truth.runs.values() if not shown or run.number == shown[0][0]]
        check(
            any(shown == [(run.number, i) for i in range(run.sent)] and run.completes for run in known),
            f"completed, but the reader shows {shown}",
        )

    def _answered(self, follower: Follower, truth: Truth, status: int) -> None:
        """Check the statuses after which a reader stops."""
        reader = follower.reader
        if status in (404, 410):
            check(truth.missing or truth.deleted, f"answered {status}, but the generation exists")
            follower.done = True
        elif status == 204:
            fresh_latest = follower.kind == "latest" and reader.last_id is None
            check(truth.ending is not None, "204, but the generation has not ended")
            check(fresh_latest or reader.over, f"204 at {reader.position}, but the reader has not seen the end")
            follower.done = True
        elif status != 200:
            check(status in (503, 409, 500, 502), f"answered {status}")
            follower.done = status != 503
        elif follower.kind == "chat":
            follower.done = True

    async def follow(self, gid: str, kind: str, gateway: int) -> Follower:
        follower = Follower(len(self.followers), gid, kind)
        self.followers.append(follower)
        await self.reconnect(follower, gateway)
        return follower

    async def reconnect(self, follower: Follower, gateway: int) -> None:
        follower.era = self.truths[follower.gid].era

        async def work() -> None:
            follower.connect(self.gateways[gateway])

        await self.step(f"connect {follower} to {gateway}", work())

    async def leave(self, follower: Follower) -> None:
        async def work() -> None:
            connection = follower.connection
            follower.reader.feed(connection.take()) if connection.status in (0, 200) else None
            follower.connection = None
            await connection.leave()

        await self.step(f"leave {follower}", work())
        if follower.kind == "chat":
            follower.done = True

    async def toggle_stall(self, follower: Follower) -> None:
        connection = follower.connection
        await self.step(f"toggle stall {follower}", _now(connection.resume if connection.stuck else connection.stall))

    async def poll(self, gateway: int) -> None:
        async def work() -> None:
            tasks = self.gateways[gateway].read_tasks()
            await self.settle()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

        await self.step(f"poll {gateway}", work())

    async def idle(self, gateway: int) -> None:
        await self.step(f"idle {gateway}", self.gateways[gateway].pass_idle_time())

    async def restart_gateway(self, gateway: int) -> None:
        async def work() -> None:
            for follower in self.followers:
                connection = follower.connection
                if connection is not None and follower.gateway is self.gateways[gateway]:
                    follower.connection = None
                    await connection.leave()
                    if follower.kind == "chat":
                        follower.done = True
            await self.gateways[gateway].hub.close()
            self.gateways[gateway] = self._gateway(gateway)
            await self._identify_server()

        await self.step(f"restart gateway {gateway}", work())

    # --- requests -----------------------------------------------------------------------------------------------

    async def request(self, op: str, gateway: int, path: str, method: str, body: bytes = b"", **headers: str) -> Any:
        async def work() -> Connection:
            connection = Connection(self.gateways[gateway].app, path, method, body, **headers)
            await connection.task
            return connection

        return await self.step(op, work())

    async def create(self, gateway: int = 0, key: str | None = None, *, restarts: bool = False) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
        if restarts:
            body["on_upstream_error"] = "restart"
        headers = {"idempotency_key": key} if key else {}
        self.steps.append(f"create {key or ''}")

        connection = Connection(
            self.gateways[gateway].app, "/v1/generations", "POST", json.dumps(body).encode(), **headers
        )
        await connection.task
        await self.settle()
        if connection.status == 503:
            self.look("nothing")
            return ""
        if connection.status == 422:
            check(any(t.restarts != restarts for t in self._of_key(key)), "a conflict without a reason")
            self.look("nothing")
            return ""
        check(connection.status in (200, 202), f"create answered {connection.status}")
        gid = connection.json["id"]
        if connection.status == 200:
            check(any(t.gid == gid and t.restarts == restarts for t in self._of_key(key)), f"replayed {gid}")
            self.look("nothing")
            return gid
        check(gid not in self.truths, "an id given twice")
        check(self.rewound or not self._of_key(key), "a second generation for one key")
        self.truths[gid] = Truth(gid, restarts, key)
        self.look("create")
        return gid

    def _of_key(self, key: str | None) -> list[Truth]:
        """The generations that the key can refer to: one, unless Redis lost some."""
        return [t for t in self.truths.values() if key is not None and t.key == key and not t.missing]

    async def cancel(self, gid: str, gateway: int = 0) -> None:
        answer = await self.request(f"cancel {gid}", gateway, f"/v1/generations/{gid}/cancel", "POST")
        truth = self.truths[gid]
        if answer.status == 200:
            check(truth.seen is not None and truth.seen.ended, f"cancelled, but {truth.seen and truth.seen.status}")
        else:
            check(truth.missing or truth.lost, f"cancel answered {answer.status}")

    async def delete(self, gid: str, gateway: int = 0) -> None:
        answer = await self.request(f"delete {gid}", gateway, f"/v1/generations/{gid}", "DELETE")
        truth = self.truths[gid]
        if answer.status == 204:
            check(truth.seen is not None and truth.seen.status == "deleted", "deleted, but the generation exists")
        else:
            check(truth.missing or truth.lost, f"delete answered {answer.status}")

    async def get(self, gid: str, gateway: int = 0) -> Any:
        """Get a generation and compare it with the log."""
        answer = await self.request(f"get {gid}", gateway, f"/v1/generations/{gid}", "GET")
        truth = self.truths[gid]
        if answer.status != 200:
            check(truth.missing or truth.lost, f"get answered {answer.status}")
            return None
        found = answer.json
        seen = truth.seen
        assert seen is not None
        check(found["status"] == seen.status, f"get has {found['status']}, the log {seen.status}")
        check(found["cursor"] == f"{seen.top[0]}-{seen.top[1]}", f"get's cursor is {found['cursor']}")
        return found

    # --- workers ------------------------------------------------------------------------------------------------

    async def take(self, w: int, *, lose_reply: bool = False) -> str:
        """A worker takes the next ticket of the queue. Returns EMPTY if there is none."""

        async def work() -> str:
            ticket = await self._pull()
            if ticket is None:
                return "EMPTY"
            if not lose_reply:
                return await self.workers[w].take(ticket)
            unattended = self._worker()
            outcome = await unattended.take(ticket)
            await unattended.crash()
            return outcome

        return await self.step(f"take {w}{' (reply lost)' if lose_reply else ''}", work())

    async def _pull(self) -> str | None:
        """Grant a ticket and take it from arq's queue. The upstream takes any number of calls at any time: the model is
        about the log."""
        await self.redis.execute("DEL", keys.upstream("default"), keys.failed("default"))
        upstreams = [UpstreamLimits("default", adaptive=False)]
        pulled = await queue_commands.pull(
            self.redis,
            1,
            lease_ms=int(LEASE * 1000),
            born="",
            tenant_running=0,
            other_tenants=b"",
            ageing_ms=HOUR_MS,
            upstreams=upstreams,
        )
        for ticket in (each.decode() for each in pulled.tickets):
            await self.redis.pipeline([("ZREM", keys.READY, ticket), ("DEL", keys.arq_job(ticket))])
            return ticket
        return None

    async def begin_late(self, w: int, run: Run) -> None:
        await self.step(f"begin {run.number}", self.workers[w].begin(run))

    async def refuse(self, run: Run, *, busy: bool) -> None:
        self.releases += 1
        await self.step(f"refuse {run.number}{' busy' if busy else ''}", _now(lambda: run.refuse(busy=busy)))

    async def send(self, run: Run, count: int) -> None:
        await self.step(f"send {run.number} +{count}", _now(lambda: run.send(count)))

    async def complete(self, run: Run) -> None:
        await self.step(f"complete {run.number}", _now(run.complete))

    async def fail(self, run: Run) -> None:
        await self.step(f"fail {run.number}", _now(run.fail))

    async def turn(self, w: int, phases: int = 3, *, touch: bool = False) -> None:
        """The worker's appender executes some of its steps: collect calls, deliver them, process the replies."""
        one = self.workers[w]
        sender = one.sender
        for _ in range(phases):
            if sender.calls is None:
                await self.step(f"gather {w}{' touch' if touch else ''}", _now(lambda: sender.gather(touch=touch)))
                if sender.calls is None:
                    return
            elif sender.replies is None:
                await self.step(f"deliver {w}", _now(lambda: self._deliver(one)))
            else:
                await self.step(f"replies {w}", _now(sender.settle))

    def _deliver(self, one: Worker) -> None:
        assert one.sender.calls is not None
        one.sender.replies = [self._call(call) for call in one.sender.calls]

    def _call(self, call: Call) -> Any:
        """Send a call. Check that only the owner writes, and that only a previous owner puts a generation back."""
        claim = call.attempt.claim
        before, reply = self.storage.pipeline([("HMGET", keys.meta(claim.gid), "st", "own", "a"), call.command])
        if is_error(reply):
            check(reply.kind == "NOSCRIPT", f"refused: {reply}")
        elif reply[0] == b"OK":
            status, own, attempt = before
            if call.command[1] != RESTORE.sha:
                check(own == claim.own.encode(), f"{claim.own} wrote, but the owner was {own}")
                touched = call.command[1] == TOUCH.sha and status == b"queued"
                check(status == b"in_progress" or touched, f"written while {status}")
            elif status is not None:
                rolled_back = status in (b"queued", b"in_progress") and int(attempt) < claim.attempt
                check(own == claim.own.encode() or rolled_back, f"{claim.own} restored over {own}, {status}")
        return reply

    async def drop_connection(self, w: int) -> None:
        """Replies in flight are lost; commands in flight can still arrive late."""
        self.ghosts += self.workers[w].sender.break_off()
        await self.step(f"drop {w}")

    async def ghost(self) -> None:
        """A command of a dropped connection arrives late."""
        call = self.ghosts.pop(0)
        await self.step("ghost", _now(lambda: self._call(call)))

    async def crash(self, w: int) -> None:
        await self.step(f"crash {w}", self.workers[w].crash())
        for run in self.workers[w].runs:
            run.over = True
        self.workers[w] = self._worker()
        self.everyone.append(self.workers[w])

    async def hand_over(self, w: int) -> None:
        self.releases += len(self.workers[w].running)
        await self.step(f"hand over {w}", self.workers[w].hand_over())
        for run in self.workers[w].runs:
            run.over = True

    async def expire_ended_attempts(self, w: int) -> None:
        await self.step(f"expire ended attempts {w}", _now(self.workers[w].sender.expire_ended_attempts))

    def pause(self, w: int) -> None:
        self.workers[w].awake = False
        self.steps.append(f"pause {w}")

    def wake(self, w: int) -> None:
        self.workers[w].awake = True
        self.steps.append(f"wake {w}")

    async def sweep(self) -> None:
        self.unswept = 0.0
        await self.step("sweep", self._sweep())

    async def _sweep(self) -> None:
        await self.reaper._refill.check()  # pyright: ignore
        await self.reaper.sweep(self.redis.topology.groups[0])

    # --- Redis and time -----------------------------------------------------------------------------------------

    async def elapse(self, seconds: float) -> None:
        ms = int(seconds * 1000)
        self.unswept += seconds
        await self.step(f"elapse {seconds}", _now(lambda: self._elapse(ms)))

    def _elapse(self, ms: int) -> None:
        self.storage.elapse(ms)
        CLOCK.offset += ms / 1000
        for attempt in self._attempts():
            attempt.epoch = _earlier(attempt.epoch, ms)
            attempt.known_at -= ms
        for gateway in self.gateways:
            gateway.age_epochs(lambda epoch: _earlier(epoch, ms))
        for one in self.everyone:
            one.sender.renew_calls()
        self.ghosts.clear()

    def _attempts(self) -> list[Attempt]:
        found: dict[int, Attempt] = {}
        for one in self.everyone:
            for run in one.runs:
                found[id(run.attempt)] = run.attempt
        return list(found.values())

    def snapshot(self) -> None:
        self.snapshots.append(self.storage.snapshot())
        self.steps.append("snapshot")

    async def fail_over(self, back: int = 1) -> None:
        """Fail over to the state of a snapshot, and discard newer snapshots."""
        back = min(back, len(self.snapshots))
        snapshot = self.snapshots[-back]
        del self.snapshots[len(self.snapshots) - back + 1 :]
        self._break_all()
        await self.step(f"fail_over {back}", _now(lambda: self.storage.fail_over(snapshot)))

    async def lose(self) -> None:
        """Redis restarts empty and without its scripts."""
        self.snapshots.clear()
        self._break_all()
        self.storage.forget_scripts()
        await self.step("lose", _now(self.storage.lose_everything))

    def _break_all(self) -> None:
        self.rewound = True
        SERVERS.number += 1
        for one in self.everyone:
            self.ghosts += one.sender.break_off()

    async def forget_scripts(self) -> None:
        await self.step("forget scripts", _now(self.storage.forget_scripts))

    async def lose_queue(self) -> None:
        await self.step("lose queue", _now(self.storage.lose_queue))

    async def trim(self, gid: str, keep: int) -> None:
        self.truths[gid].trimmed = True
        await self.step("trim", _now(lambda: self.storage.call("XTRIM", keys.log(gid), "MAXLEN", keep)))

    # --- the end ------------------------------------------------------------------------------------------------

    async def finish_and_check(self) -> None:
        """Let all live processes finish. Check that all generations have ended, that all followers know it, and that
        late commands change nothing."""
        for follower in self.followers:
            if follower.connection is not None:
                follower.connection.resume()
        await self.step("resume")
        for w, one in enumerate(self.workers):
            if one.awake:
                await self.drain_worker(w)
                for run in one.busy:
                    await self.complete(run)
                await self.drain_worker(w)
        await self._end_orphans()
        await self._all_followers_end()
        await self._late_commands_change_nothing()
        for gid in self.truths:
            await self._all_gateways_agree(gid)

    async def drain_worker(self, w: int) -> None:
        """Step the worker's appender until it has nothing left to send."""
        await self.turn(w, touch=True)
        for _ in range(60):
            if self.workers[w].sender.idle:
                return
            await self.turn(w)
        raise Violation(f"worker {w} does not become idle")

    def open(self) -> list[Truth]:
        return [t for t in self.truths.values() if t.seen and t.seen.status in ("queued", "in_progress")]

    async def _end_orphans(self) -> None:
        """The reaper and a new worker end generations without a live worker."""
        last = self._worker()
        self.workers.append(last)
        self.everyone.append(last)
        for turn in range(3 * MAX_ATTEMPTS):
            if not self.open():
                return
            await self.elapse(LEASE + 31 if turn < MAX_ATTEMPTS else LOOK + 1)
            await self.sweep()
            while await self.take(len(self.workers) - 1) != "EMPTY":
                pass
            for run in last.busy:
                await self.send(run, 2)
                await self.complete(run)
            await self.drain_worker(len(self.workers) - 1)
        check(not self.open(), f"never ended: {self.open()}")

    async def _all_followers_end(self) -> None:
        for turn in range(30):
            waiting = [follower for follower in self.followers if not follower.done]
            if not waiting:
                return
            for follower in waiting:
                if follower.connection is None:
                    await self.reconnect(follower, turn % 2)
            for gateway in range(2):
                await self.poll(gateway)
                if turn % 2:
                    await self.idle(gateway)
            if turn == 15:
                await self.elapse(60)
        waiting = [(f, f.reader.history[-5:]) for f in self.followers if not f.done]
        raise Violation(f"followers hang: {waiting}")

    async def _late_commands_change_nothing(self) -> None:
        while self.ghosts:
            await self.ghost()
        for w, one in enumerate(self.workers):
            if not one.awake:
                self.wake(w)
                for run in one.busy:
                    await self.send(run, 1)
                await self.drain_worker(w)
                for run in one.busy:
                    await self.complete(run)
                await self.drain_worker(w)

    async def _all_gateways_agree(self, gid: str) -> None:
        """Check that new readers on both gateways see the text of `get`."""
        self.gateways[1] = self._gateway(1)
        texts: set[str] = set()
        for gateway in range(2):
            kinds = ("native", "python") if gateway else ("native", "chat")
            readers = [await self.follow(gid, kind, gateway) for kind in kinds]
            found = await self.get(gid, gateway)
            if found is None:
                return
            for reader in readers:
                if reader.kind == "chat":
                    continue
                if not reader.done and self.truths[gid].trimmed:
                    await self.reconnect(reader, gateway)  # a Python program gets the gap as an exception
                check(reader.done, f"a fresh reader of an ended generation hangs: {reader.reader.history}")
                texts.add("".join(f"{n}.{i} " for n, i in reader.reader.shown.pieces))
            check(self.truths[gid].trimmed or texts == {found["text"]}, f"{texts}, but get has {found['text']!r}")


def _earlier(epoch: bytes, ms: int) -> bytes:
    born, _, rest = epoch.partition(b".")
    return b"%d.%s" % (int(born) - ms, rest)


async def _now(work: Any) -> Any:
    return work()

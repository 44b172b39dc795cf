"""The random machine: hypothesis chooses operations on the world in any order."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, ClassVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.processes import Follower, Run
from tests.model.truth import Truth
from tests.model.world import HOUR_MS, LEASE, RETENTION, World

worker = st.integers(0, 2)
gateway = st.integers(0, 1)
choice = st.integers(0, 7)
rarely = st.sampled_from([False] * 7 + [True])
kinds = st.sampled_from(["native", "native", "native", "latest", "chat", "python"])


class LogMachine(RuleBasedStateMachine):
    """One example: up to three generations, five followers, and about fifty steps."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        self.run(self.world.begin())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.world.run(work)
        except BaseException:
            self.failed = True
            raise

    @initialize(restarts=st.booleans(), keyed=st.booleans(), kind=kinds, running=st.integers(0, 3))
    def first(self, restarts: bool, keyed: bool, kind: str, running: int) -> None:
        self.run(self.world.create(0, "key" if keyed else None, restarts=restarts))
        self.run(self.world.follow(self.truth(0).gid, kind, 0))
        if running:
            self.run(self.world.take(0))
        if running > 1:
            self.run(self.world.send(self.busy[0][1], running))
            self.run(self.world.turn(0))
            self.run(self.world.poll(0))

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.run(self.world.finish_and_check())
        finally:
            if self.failed:
                note("\n".join(self.world.steps))
            self.run(self.world.end())

    # --- state ----------------------------------------------------------------------------------------------------

    def truth(self, n: int) -> Truth:
        truths = list(self.world.truths.values())
        return truths[n % len(truths)]

    @property
    def busy(self) -> list[tuple[int, Run]]:
        workers = enumerate(self.world.workers)
        return [(w, run) for w, one in workers if one.awake for run in one.busy]

    def connected(self) -> list[Follower]:
        return [follower for follower in self.world.followers if follower.connection is not None]

    def away(self) -> list[Follower]:
        return [follower for follower in self.world.followers if follower.connection is None and not follower.done]

    # --- workers --------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(t.seen and t.seen.status == "queued" for t in self.world.truths.values()))
    @rule(n=choice, lose_reply=rarely)
    def take(self, n: int, lose_reply: bool) -> None:
        awake = [w for w, one in enumerate(self.world.workers) if one.awake]
        if awake:
            self.run(self.world.take(awake[n % len(awake)], lose_reply=lose_reply))

    @precondition(lambda self: self.busy)
    @rule(n=choice, count=st.integers(1, 7), phases=st.integers(0, 6), snapshot=st.booleans())
    def work(self, n: int, count: int, phases: int, snapshot: bool) -> None:
        w, run = self.busy[n % len(self.busy)]
        if snapshot:
            self.world.snapshot()
        self.run(self.world.send(run, count))
        self.run(self.world.turn(w, phases))

    @precondition(lambda self: self.busy)
    @rule(n=choice, count=st.integers(1, 3), polled=st.booleans())
    def work_and_poll(self, n: int, count: int, polled: bool) -> None:
        w, run = self.busy[n % len(self.busy)]
        self.run(self.world.send(run, count))
        self.run(self.world.turn(w, 3))
        if polled:
            for g in range(2):
                self.run(self.world.poll(g))

    @precondition(lambda self: self.busy)
    @rule(n=choice, phases=st.integers(0, 3), fails=st.booleans())
    def finish(self, n: int, phases: int, fails: bool) -> None:
        w, run = self.busy[n % len(self.busy)]
        self.run(self.world.fail(run) if fails else self.world.complete(run))
        self.run(self.world.turn(w, phases))

    @precondition(lambda self: any(not run.sent for _, run in self.busy))
    @rule(n=choice, what=st.sampled_from(["begin", "busy", "fails"]))
    def before_the_first_token(self, n: int, what: str) -> None:
        silent = [(w, run) for w, run in self.busy if not run.sent]
        w, run = silent[n % len(silent)]
        if what == "begin":
            self.run(self.world.begin_late(w, run))
        else:
            self.run(self.world.refuse(run, busy=what == "busy"))

    @precondition(lambda self: any(one.awake and one.runs for one in self.world.workers))
    @rule(w=worker, phases=st.integers(1, 6), touch=st.booleans())
    def turn(self, w: int, phases: int, touch: bool) -> None:
        if self.world.workers[w].awake:
            self.run(self.world.turn(w, phases, touch=touch))

    @precondition(lambda self: self.world.ghosts)
    @rule()
    def ghost(self) -> None:
        self.run(self.world.ghost())

    @precondition(lambda self: any(one.runs for one in self.world.workers))
    @rule(w=worker, what=st.sampled_from(["drop", "drop", "pause", "pause", "crash", "hand over", "expire"]))
    def disturb(self, w: int, what: str) -> None:
        one = self.world.workers[w]
        if not one.runs:
            return
        if not one.awake:
            self.world.wake(w)
        elif what == "drop":
            self.run(self.world.drop_connection(w))
        elif what == "pause":
            self.world.pause(w)
        elif what == "crash":
            self.run(self.world.crash(w))
        elif what == "hand over":
            self.run(self.world.hand_over(w))
        else:
            self.run(self.world.expire_ended_attempts(w))

    @rule(late=st.sampled_from([True, False, False]))
    def sweep(self, late: bool) -> None:
        if late:
            self.run(self.world.elapse(LEASE + 16))
        self.run(self.world.sweep())

    # --- callers --------------------------------------------------------------------------------------------------

    @rule(n=choice, g=gateway, what=st.sampled_from(["create", "get", "cancel", "delete"]), option=st.booleans())
    def call(self, n: int, g: int, what: str, option: bool) -> None:
        gid = self.truth(n).gid
        if what == "create" and len(self.world.truths) < 3:
            self.run(self.world.create(g, "key" if n else None, restarts=option))
        elif what == "get":
            self.run(self.world.get(gid, g))
        elif what == "cancel" and option:
            self.run(self.world.cancel(gid, g))
        elif what == "delete" and option and n < 2:
            self.run(self.world.delete(gid, g))

    # --- followers ------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.followers) < 5)
    @rule(n=choice, g=gateway, kind=kinds)
    def follow(self, n: int, g: int, kind: str) -> None:
        self.run(self.world.follow(self.truth(n).gid, kind, g))

    @precondition(lambda self: self.connected())
    @rule(both=st.booleans(), times=st.integers(1, 2))
    def poll(self, both: bool, times: int) -> None:
        for _ in range(times):
            for g in range(1 + both):
                self.run(self.world.poll(g))

    @precondition(lambda self: self.connected())
    @rule(g=gateway)
    def idle(self, g: int) -> None:
        self.run(self.world.idle(g))

    @precondition(lambda self: self.connected())
    @rule(n=choice, stalls=st.booleans())
    def leave_or_stall(self, n: int, stalls: bool) -> None:
        follower = self.connected()[n % len(self.connected())]
        self.run(self.world.toggle_stall(follower) if stalls else self.world.leave(follower))

    @precondition(lambda self: self.away())
    @rule(n=choice, g=gateway)
    def reconnect(self, n: int, g: int) -> None:
        self.run(self.world.reconnect(self.away()[n % len(self.away())], g))

    # --- Redis and time -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([8, 8, 8, 16, 61]), long=rarely)
    def elapse(self, seconds: int, long: bool) -> None:
        if long and not self.world.open():
            self.run(self.world.elapse(RETENTION + 1 if seconds < 16 else HOUR_MS / 1000 + 1))
        else:
            if self.world.unswept > 1800 and self.world.open():
                self.run(self.world.sweep())  # as in reality: waiting generations would expire after seven days
            self.run(self.world.elapse(seconds))

    @rule()
    def snapshot(self) -> None:
        self.world.snapshot()

    @precondition(lambda self: self.world.snapshots)
    @rule(back=st.integers(1, 3))
    def fail_over(self, back: int) -> None:
        self.run(self.world.fail_over(back))

    @rule(n=choice, what=st.sampled_from(["lose", "scripts", "queue", "gateway", "trim"]), g=gateway)
    def disaster(self, n: int, what: str, g: int) -> None:
        if what == "lose" and n < 2:
            self.run(self.world.lose())
        elif what == "scripts":
            self.run(self.world.forget_scripts())
        elif what == "queue":
            self.run(self.world.lose_queue())
        elif what == "gateway":
            self.run(self.world.restart_gateway(g))
        elif what == "trim" and n < 3:
            self.run(self.world.trim(self.truth(n).gid, 1 + n))

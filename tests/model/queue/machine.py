"""The random machine over the queue: hypothesis chooses operations in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.queue.commands import NOT_TOLD, ToldLimit, ToldLimits
from tests.model.queue.world import GRACE, HOUR, LANES, LEASE, TENANTS, Call, QueueWorld, Setup, Worker

choice = st.integers(0, 7)
limit = st.sampled_from([0, 1, 2])
limits_told = st.sampled_from(
    [
        *[NOT_TOLD] * 6,
        ToldLimits(ToldLimit(12, 5, 35_000, 60_000)),
        ToldLimits(ToldLimit(12, 0, 4_000, 60_000)),
        ToldLimits(ToldLimit(3, 2, 300, 1_000), ToldLimit(40, 15, 37_500, 60_000)),
        ToldLimits(ToldLimit(None, 2)),
    ]
)


class QueueMachine(RuleBasedStateMachine):
    """One example: two upstreams, one lane for each and one for both, four tenants, and two or three workers."""

    world: ClassVar[QueueWorld]

    def __init__(self) -> None:
        super().__init__()
        self.failed = False

    @initialize(
        a=st.sampled_from([1, 3]),
        b=st.sampled_from([0, 1, 2]),
        adaptive=st.tuples(st.booleans(), st.booleans()),
        per_minute=st.sampled_from([0, 0, 12]),
        limits=st.tuples(limit, limit, limit),
    )
    def first(self, a: int, b: int, adaptive: tuple[bool, bool], per_minute: int, limits: tuple[int, int, int]) -> None:
        tenants = {tenant: most for tenant, most in zip(TENANTS, limits, strict=False) if most}
        learns = {"a": adaptive[0], "b": adaptive[1] or not b}
        self.world.begin(Setup({"a": a, "b": b}, learns, {"b": per_minute}, tenants))
        for worker in self.world.workers:
            self.step(lambda worker=worker: self.world.pull(worker, 1))

    def step(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException:
            self.failed = True
            raise

    def teardown(self) -> None:
        if self.failed:
            note("\n".join(self.world.steps))

    @invariant()
    def stored_as_it_is(self) -> None:
        if hasattr(self.world, "setup"):
            self.step(self.world.check)

    # --- state ----------------------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[tuple[Worker, str, Call]]:
        return [(worker, gid, call) for worker in self.world.workers for gid, call in worker.calls.items()]

    def worker(self, n: int) -> Worker:
        return self.world.workers[n % len(self.world.workers)]

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(
        lane=st.sampled_from(LANES),
        priority=st.sampled_from([1, 3, 3, 5]),
        tenants=st.lists(st.sampled_from(TENANTS), min_size=1, max_size=4),
        delay=st.sampled_from([0, 0, 0, 500, 30_000]),
    )
    def create(self, lane: str, priority: int, tenants: list[str], delay: int) -> None:
        for tenant in tenants:
            self.step(lambda tenant=tenant: self.world.create(lane, priority, tenant, delay))

    @rule(n=choice, most=st.sampled_from([1, 3, 8]), later=st.booleans())
    def pull(self, n: int, most: int, later: bool) -> None:
        """`later`: once the places can be trusted again; otherwise disturbances leave few pulls that grant anything."""
        if later:
            self.step(lambda: self.world.elapse(GRACE))
        self.step(lambda: self.world.pull(self.worker(n), most))

    @precondition(lambda self: self.calls)
    @rule(n=choice, told=limits_told)
    def begun(self, n: int, told: ToldLimits) -> None:
        worker, gid, _ = self.calls[n % len(self.calls)]
        self.step(lambda: self.world.begun(worker, gid, told))

    @precondition(lambda self: self.calls)
    @rule(n=choice)
    def take(self, n: int) -> None:
        worker, gid, _ = self.calls[n % len(self.calls)]
        self.step(lambda: self.world.take(worker, gid))

    @precondition(lambda self: self.calls)
    @rule(n=choice, outcome=st.sampled_from(["ok", "ok", "none", "denied"]))
    def end(self, n: int, outcome: str) -> None:
        worker, gid, _ = self.calls[n % len(self.calls)]
        self.step(lambda: self.world.done(worker, gid, outcome))  # type: ignore[arg-type]

    @precondition(lambda self: self.calls)
    @rule(n=choice, retry=st.sampled_from([-1, 1_000, 20_000]), told=limits_told)
    def refuse(self, n: int, retry: int, told: ToldLimits) -> None:
        worker, gid, _ = self.calls[n % len(self.calls)]
        self.step(lambda: self.world.done(worker, gid, "busy", retry=retry, back=0, told=told))

    @precondition(lambda self: self.calls)
    @rule(n=choice, times=st.sampled_from([1, 3]), delay=st.sampled_from([0, 500, 4_000]))
    def fail(self, n: int, times: int, delay: int) -> None:
        for worker, gid, _ in (self.calls * 2)[n % len(self.calls) :][: min(times, len(self.calls))]:
            self.step(lambda worker=worker, gid=gid: self.world.done(worker, gid, "fail", back=delay))

    @precondition(lambda self: self.world.waiting)
    @rule(n=choice)
    def withdraw(self, n: int) -> None:
        gids = list(self.world.waiting)
        self.step(lambda: self.world.withdraw(gids[n % len(gids)]))

    @rule(n=choice)
    def hold(self, n: int) -> None:
        self.step(lambda: self.world.hold(self.worker(n)))

    @rule(ms=st.sampled_from([100, 1_000, 4_000, 6_000, LEASE + 1, 61_000]))
    def elapse(self, ms: int) -> None:
        self.step(lambda: self.world.elapse(ms))

    @rule(n=choice)
    def die(self, n: int) -> None:
        self.step(lambda: self.world.die(self.worker(n)))

    @rule(ms=st.sampled_from([14_000, 20_000]), n=choice, starts=st.booleans())
    def stand_still(self, ms: int, n: int, starts: bool) -> None:
        self.step(lambda: self.world.stand_still(ms))
        self.pull_first(n, starts)

    @rule(ms=st.sampled_from([HOUR, -HOUR, -HOUR // 2]), n=choice, starts=st.booleans())
    def step_clock(self, ms: int, n: int, starts: bool) -> None:
        self.step(lambda: self.world.step_clock(ms))
        self.pull_first(n, starts)

    def pull_first(self, n: int, starts: bool) -> None:
        """The first call after a disturbance, perhaps by a worker that has just started."""
        if starts and len(self.world.workers) < 4:
            self.world.start()
            n = len(self.world.workers) - 1
        self.step(lambda: self.world.pull(self.worker(n), 8))

    @precondition(lambda self: any(worker.born for worker in self.world.workers))
    @rule()
    def lose(self) -> None:
        self.step(self.world.lose)

    @precondition(lambda self: self.world.lost)
    @rule()
    def refill(self) -> None:
        self.step(self.world.refill)

    @rule(what=st.sampled_from(["all", "u:a", "t:t0"]))
    def pause_or_resume(self, what: str) -> None:
        self.step(lambda: self.world.pause(what, what not in self.world.paused))

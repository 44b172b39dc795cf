"""Fair turns, refunds and ageing on the queue's scripts, each with the mutant that its check detects."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model.queue.mutants import DIRECTED
from tests.model.queue.scripts import Mutant, replaced
from tests.model.queue.told_limits import TOLD_CHECKS, TOLD_MUTANTS
from tests.model.queue.world import AGEING, GRACE, HOUR, LEASE, QueueWorld, Setup, Worker
from tests.model.truth import check

Check = Callable[[QueueWorld], None]


def run_one(world: QueueWorld, *, refused: bool = False) -> str:
    """Run the next ticket, and return its tenant; or refuse it, and put it back."""
    worker = world.workers[0]
    world.pull(worker, 1)
    ((gid, call),) = worker.calls.items()
    if refused:
        world.done(worker, gid, "busy", retry=0, back=0)
    else:
        world.done(worker, gid, "ok")
    world.check()
    return call.ticket.tenant


def a_flood_leaves_others_their_turns(world: QueueWorld) -> None:
    for _ in range(30):
        world.create("a", 3, "t0", 0)
    served = [run_one(world) for _ in range(10)]
    for _ in range(10):
        world.create("a", 3, "t1", 0)
    served += [run_one(world) for _ in range(20)]
    check(served[10:].count("t1") == 10, f"{served}")


def a_refused_call_is_not_a_turn(world: QueueWorld) -> None:
    """Two tenants that always wait complete the same number of generations, also if one of them is refused."""
    for _ in range(20):
        world.create("a", 3, "t0", 0)
        world.create("a", 3, "t1", 0)
    for _ in range(5):
        check(run_one(world, refused=True) == "t0", "the refused tenant lost its turn")
    served = [run_one(world) for _ in range(20)]
    check(served.count("t0") == 10, f"{served}")


def a_refused_call_of_a_heavy_tenant_gives_back_what_it_cost(world: QueueWorld) -> None:
    world.setup.weights["t0"] = 4
    for _ in range(20):
        world.create("a", 3, "t0", 0)
        world.create("a", 3, "t1", 0)
    for _ in range(4):
        check(run_one(world, refused=True) == "t0", "the refused tenant lost its turn")
    served = [run_one(world) for _ in range(20)]
    check(served.count("t0") == 16, f"{served}")


def the_last_priority_runs_at_last(world: QueueWorld) -> None:
    world.create("a", 5, "t0", 0)
    for _ in range(20):
        world.create("a", 1, "t1", 0)
    for _ in range(3):
        check(run_one(world) == "t1", "the last priority ran before the first")
    world.elapse(AGEING + 1)
    world.create("a", 1, "t1", 0)
    served = [run_one(world) for _ in range(2)]
    check("t0" in served, "the last priority starves")


def a_tenant_without_tickets_saves_no_turns(world: QueueWorld) -> None:
    world.create("a", 3, "t1", 0)
    run_one(world)
    for _ in range(40):
        world.create("a", 3, "t0", 0)
    for _ in range(20):
        run_one(world)
    for _ in range(20):
        world.create("a", 3, "t1", 0)
    served = [run_one(world) for _ in range(20)]
    check(served.count("t1") == 10, f"{served}")


def turns_count_in_all_lanes(world: QueueWorld) -> None:
    """A tenant in two lanes has one turn in a round."""
    for _ in range(10):
        world.create("a", 3, "t0", 0)
        world.create("a,b", 3, "t0", 0)
        world.create("a", 3, "t1", 0)
    world.pause("u:b", True)
    served = [run_one(world) for _ in range(10)]
    check(served.count("t1") == 5, f"{served}")


def a_lane_of_an_idle_worker_is_its_own(world: QueueWorld) -> None:
    """A worker does not move the tickets of a lane that another one serves, although nobody waited there for long."""
    first, second = world.workers
    first.knows, second.knows = ("a",), ("b",)
    for worker in world.workers:
        world.pull(worker, 1)
    for _ in range(4):
        world.elapse(30_000)
        for worker in world.workers:
            world.pull(worker, 1)
    world.create("b", 3, "t0", 0)
    world.pull(first, 1)
    world.pull(second, 1)
    check(len(second.calls) == 1, "the ticket was not given to its worker")


def a_position_is_the_number_of_runs_before(world: QueueWorld) -> None:
    for tenant, count in (("t0", 5), ("t1", 3)):
        for _ in range(count):
            world.create("a", 3, tenant, 0)
    world.create("a", 1, "t2", 0)
    positions = {gid: world.position(gid) for gid in world.waiting}
    worker, order = world.workers[0], list[str]()
    for _ in range(9):
        world.pull(worker, 1)
        (gid,) = worker.calls
        order.append(gid)
        world.done(worker, gid, "ok")
    check(positions == {gid: n + 1 for n, gid in enumerate(order)}, f"{positions}, but {order}")


def a_half_open_circuit_has_one_probe(world: QueueWorld) -> None:
    worker = open_circuit(world, waiting=5)
    check(len(world.pull(worker, 8).tickets) == 1, "not one probe")
    check(len(world.pull(worker, 8).tickets) == 0, "another probe")


def a_probe_keeps_the_limit(world: QueueWorld) -> None:
    worker = open_circuit(world, waiting=3, running=1)
    world.setup.most["a"] = 1
    check(len(world.pull(worker, 8).tickets) == 0, "a probe above the limit")


def a_refused_probe_makes_room(world: QueueWorld) -> None:
    worker = open_circuit(world, waiting=3)
    world.pull(worker, 1)
    (gid,) = worker.calls
    world.done(worker, gid, "busy", retry=100, back=0)
    world.elapse(200)
    check(len(world.pull(worker, 1).tickets) == 1, "no other probe")


def open_circuit(world: QueueWorld, *, waiting: int, running: int = 0) -> Worker:
    """An upstream that has refused its key and can be tried again."""
    raise_limit(world, 3)
    for _ in range(waiting + running + 1):
        world.create("a", 3, "t0", 0)
    worker = world.workers[0]
    world.pull(worker, running + 1)
    world.done(worker, next(iter(worker.calls)), "denied")
    world.elapse(60_001)
    return worker


def raise_limit(world: QueueWorld, most: int) -> None:
    """Every worker is configured with a higher limit, and the lower one is forgotten."""
    world.setup.most["a"] = most
    world.elapse(31_000)


def a_busy_time_ends_although_the_clock_goes_back(world: QueueWorld) -> None:
    world.create("a", 3, "t0", 0)
    worker = world.workers[0]
    world.pull(worker, 1)
    (gid,) = worker.calls
    world.done(worker, gid, "busy", retry=1_000, back=0)
    world.step_clock(-HOUR // 2)
    world.pull(worker, 1)
    world.elapse(GRACE + 1_000)
    check(len(world.pull(worker, 1).tickets) == 1, "the upstream stays busy")


def a_withdrawn_ticket_leaves_no_turn(world: QueueWorld) -> None:
    world.setup.tenants["t0"] = 1
    world.create("a", 3, "t0", 0)
    world.create("a", 3, "t0", 0)
    raise_limit(world, 2)
    world.pull(world.workers[0], 8)
    (gid,) = world.waiting
    world.withdraw(gid)
    world.check()


def a_standstill_is_noticed(world: QueueWorld) -> None:
    """It is shorter than a lease, and the places end all the same: they were to be renewed soon."""
    stand_still(world)
    check(len(world.pull(world.workers[1], 1).tickets) == 0, "nothing can be known after a standstill")


def a_worker_that_starts_notices_a_standstill(world: QueueWorld) -> None:
    stand_still(world)
    world.start()
    check(len(world.pull(world.workers[2], 1).tickets) == 0, "nothing can be known after a standstill")


def stand_still(world: QueueWorld) -> None:
    """The place of a call ends, which its worker could not renew."""
    world.create("a", 3, "t0", 0)
    world.create("a", 3, "t0", 0)
    world.pull(world.workers[0], 1)
    world.elapse(4_000)
    world.pull(world.workers[1], 1)
    world.stand_still(14_000)


def a_worker_that_starts_does_not_end_the_grace(world: QueueWorld) -> None:
    world.create("a", 3, "t0", 0)
    world.create("a", 3, "t0", 0)
    world.pull(world.workers[1], 1)
    world.lose()
    world.refill()
    world.step_clock(-HOUR // 2)
    world.start()
    check(len(world.pull(world.workers[2], 1).tickets) == 0, "the other worker has not put its place back")


def a_place_from_the_future_ends(world: QueueWorld) -> None:
    """The clock went back, and the worker that had the place is dead."""
    world.create("a", 3, "t0", 0)
    world.create("a", 3, "t0", 0)
    world.pull(world.workers[0], 1)
    world.die(world.workers[0])
    world.step_clock(-HOUR)
    world.pull(world.workers[0], 1)
    world.elapse(GRACE + 1_000)
    check(len(world.pull(world.workers[0], 1).tickets) == 1, "the place stays")


def a_full_tenant_runs_after_the_death_of_its_worker(world: QueueWorld) -> None:
    world.setup.tenants["t0"] = 1
    raise_limit(world, 3)
    world.create("a", 3, "t0", 0)
    world.create("a", 3, "t0", 0)
    check(len(world.pull(world.workers[0], 8).tickets) == 1, "not one call")
    world.die(world.workers[0])
    world.elapse(LEASE + 1)
    check(len(world.pull(world.workers[0], 8).tickets) == 1, "the tenant waits forever")


CHECKS: dict[str, Check] = {
    "a full tenant": a_full_tenant_runs_after_the_death_of_its_worker,
    "a standstill": a_standstill_is_noticed,
    "a start after a standstill": a_worker_that_starts_notices_a_standstill,
    "a start within the grace": a_worker_that_starts_does_not_end_the_grace,
    "places from the future": a_place_from_the_future_ends,
    "a half-open circuit": a_half_open_circuit_has_one_probe,
    "a probe at the limit": a_probe_keeps_the_limit,
    "a refused probe": a_refused_probe_makes_room,
    "a clock step": a_busy_time_ends_although_the_clock_goes_back,
    "a withdrawn ticket": a_withdrawn_ticket_leaves_no_turn,
    "a flood": a_flood_leaves_others_their_turns,
    "a refused call": a_refused_call_is_not_a_turn,
    "a refused call of a heavy tenant": a_refused_call_of_a_heavy_tenant_gives_back_what_it_cost,
    "the last priority": the_last_priority_runs_at_last,
    "an idle tenant": a_tenant_without_tickets_saves_no_turns,
    "several lanes": turns_count_in_all_lanes,
    "an idle worker": a_lane_of_an_idle_worker_is_its_own,
    "positions": a_position_is_the_number_of_runs_before,
    **TOLD_CHECKS,
}


MUTANTS = DIRECTED + TOLD_MUTANTS


@pytest.fixture
def queue(world: QueueWorld) -> QueueWorld:
    world.begin(Setup({"a": 1, "b": 1}, {"a": False, "b": False}, {}, {}))
    world.pull(world.workers[0], 1)
    world.pull(world.workers[1], 1)
    return world


@pytest.mark.parametrize("name", CHECKS)
def test_the_order_of_tickets(queue: QueueWorld, name: str) -> None:
    CHECKS[name](queue)


@pytest.mark.parametrize("world", ["valkey"], indirect=True)
@pytest.mark.parametrize(("name", "mutant"), MUTANTS, ids=[mutant.name for _, mutant in MUTANTS])
def test_a_check_detects_its_mutant(queue: QueueWorld, name: str, mutant: Mutant) -> None:
    with replaced(*mutant.changes), pytest.raises(AssertionError):
        CHECKS[name](queue)

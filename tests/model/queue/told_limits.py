"""Limits that an upstream tells in its headers, on the queue's scripts, each check with the mutants that it detects."""

from __future__ import annotations

from collections.abc import Callable

from broker.queue.commands import ToldLimit, ToldLimits
from tests.model.queue.scripts import Mutant
from tests.model.queue.world import QueueWorld, Worker
from tests.model.truth import check

MINUTE = 60_000
FORGOTTEN = 300_000


def told(limit: int | None, remaining: int | None, reset: int | None = None, window: int | None = MINUTE) -> ToldLimits:
    return ToldLimits(ToldLimit(limit, remaining, reset, window))


def begin(world: QueueWorld, calls: int = 1) -> Worker:
    """An upstream of eight calls at once has some, and more wait."""
    world.setup.most["a"] = 8
    world.elapse(31_000)  # the lower limit is forgotten
    for _ in range(40):
        world.create("a", 3, "t0", 0)
    worker = world.workers[0]
    check(len(world.pull(worker, calls).tickets) == calls, "not the first calls")
    return worker


def accept(world: QueueWorld, worker: Worker, limits: ToldLimits) -> None:
    """The upstream accepts a call, and tells its limits."""
    world.begun(worker, next(gid for gid, call in worker.calls.items() if not call.accepted), limits)


def granted(world: QueueWorld, worker: Worker) -> int:
    return len(world.pull(worker, 8).tickets)


def a_told_rate_is_kept(world: QueueWorld) -> None:
    worker = begin(world)
    accept(world, worker, told(12, 4))
    check(granted(world, worker) == 3, "one unit is left over")
    check(granted(world, worker) == 0, "more than remained")
    world.elapse(5_000)
    check(granted(world, worker) == 1, "not the call of these five seconds")


def told_tokens_are_kept(world: QueueWorld) -> None:
    worker = begin(world)
    accept(world, worker, ToldLimits(tokens=ToldLimit(60, 25, None, MINUTE)))
    check(granted(world, worker) == 2, "two calls of ten tokens each")
    check(granted(world, worker) == 0, "more than remained")
    world.elapse(5_000)
    check(granted(world, worker) == 1, "not the call of the tokens that came back")


def nothing_runs_before_the_reset(world: QueueWorld) -> None:
    worker = begin(world)
    accept(world, worker, told(60, 0, 20_000))
    world.elapse(19_000)
    check(granted(world, worker) == 0, "a call before the reset")
    world.elapse(1_001)
    check(granted(world, worker) > 0, "no call after the reset")


def a_refusal_says_itself_when_to_call_again(world: QueueWorld) -> None:
    worker = begin(world)
    world.done(worker, next(iter(worker.calls)), "busy", retry=1_000, back=0, told=told(60, 0, 60_000))
    check(granted(world, worker) == 0, "a call before the time")
    world.elapse(2_001)
    check(granted(world, worker) > 0, "no call after the time")


def a_refusal_tells_limits_too(world: QueueWorld) -> None:
    worker = begin(world)
    world.done(worker, next(iter(worker.calls)), "busy", retry=0, back=0, told=told(3, 0))
    check(granted(world, worker) == 0, "more than remained")


def what_others_use_is_missing(world: QueueWorld) -> None:
    worker = begin(world, 2)
    accept(world, worker, told(12, 12))
    accept(world, worker, told(12, 1))
    check(granted(world, worker) == 0, "others have used the limit")


def what_remains_may_be_used(world: QueueWorld) -> None:
    """The limit is one of a second, and was taken for one of a minute."""
    worker = begin(world, 2)
    accept(world, worker, told(9, 1))
    world.elapse(1_000)
    accept(world, worker, told(9, 8))
    check(granted(world, worker) > 1, "fewer than remained")


def calls_under_way_are_counted(world: QueueWorld) -> None:
    worker = begin(world, 4)
    accept(world, worker, told(9, 3))
    check(granted(world, worker) == 0, "three calls under way will use what remains")


def the_longest_window_counts(world: QueueWorld) -> None:
    """At the end of a fixed window, what was used comes back soon: not each second."""
    worker = begin(world, 2)
    accept(world, worker, told(9, 5, 50_000))
    accept(world, worker, told(9, 1, 500, 1_000))
    granted(world, worker)
    world.elapse(2_000)
    check(granted(world, worker) == 0, "a call in a window of a second")


def a_limit_that_is_no_longer_told_is_forgotten(world: QueueWorld) -> None:
    worker = begin(world)
    accept(world, worker, told(1, 0, None, 24 * 60 * MINUTE))
    world.elapse(FORGOTTEN - 1_000)
    check(granted(world, worker) == 0, "forgotten too soon")
    world.elapse(2_000)
    check(granted(world, worker) > 0, "not forgotten")


def what_remains_of_a_configured_limit(world: QueueWorld) -> None:
    """An upstream that tells no limit, only what remains."""
    world.setup.per_minute["a"] = 12
    worker = begin(world)
    world.pull(worker, 1)
    accept(world, worker, told(None, 0, None, None))
    world.elapse(5_000)
    check(granted(world, worker) == 0, "others have used the limit")


TOLD_CHECKS: dict[str, Callable[[QueueWorld], None]] = {
    "a told rate": a_told_rate_is_kept,
    "told tokens": told_tokens_are_kept,
    "nothing remains": nothing_runs_before_the_reset,
    "a refusal with a time": a_refusal_says_itself_when_to_call_again,
    "a refusal with limits": a_refusal_tells_limits_too,
    "other users": what_others_use_is_missing,
    "a short window": what_remains_may_be_used,
    "calls under way": calls_under_way_are_counted,
    "the longest window": the_longest_window_counts,
    "a forgotten limit": a_limit_that_is_no_longer_told_is_forgotten,
    "only what remains": what_remains_of_a_configured_limit,
}

TOLD_MUTANTS = [
    (check_of, Mutant(name, [(text, replacement)], fault))
    for check_of, name, text, replacement, fault in [
        (
            "a told rate",
            "a told rate is not looked at",
            "return not u.requests or passes(u, told_wait(u.requests, 1))",
            "return true",
            "calls that are refused",
        ),
        (
            "a told rate",
            "a call uses no unit",
            "  if u.requests then take_told(u.key, u.requests, 1, now) end\n",
            "",
            "calls that are refused",
        ),
        (
            "a told rate",
            "no unit is left over",
            "bucket.limit >= 10 then",
            "false then",
            "a hold until the reset after each burst of calls",
        ),
        (
            "told tokens",
            "told tokens are not looked at",
            "  if u.tokens and not passes(u, told_wait(u.tokens, tonumber(tokens))) then return nil end\n",
            "",
            "calls that are refused",
        ),
        ("nothing remains", "no hold", "  if holds then\n", "  if false then\n", "calls that are refused"),
        (
            "a refusal with a time",
            "the reset counts, not the time of the refusal",
            "outcome ~= 'busy')",
            "true)",
            "an upstream that is not called for a minute",
        ),
        (
            "a refusal with limits",
            "a refusal tells nothing",
            "note_headers(resource, h, now, 10,",
            "(function() end)(",
            "calls that are refused",
        ),
        (
            "other users",
            "what remains raises the bucket only",
            "left = math.max(least, math.min(left, most))",
            "left = math.max(least, left)",
            "calls that are refused",
        ),
        (
            "a short window",
            "what remains lowers the bucket only",
            "left = math.max(least, math.min(left, most))",
            "left = math.min(left, most)",
            "an upstream that is used by a sixtieth",
        ),
        (
            "calls under way",
            "calls under way are forgotten",
            "math.max(0, most - ahead)",
            "math.max(0, most)",
            "calls that are refused",
        ),
        (
            "the longest window",
            "the newest window counts",
            "window < known.window and now - longest <= SETTLED",
            "false",
            "calls that are refused",
        ),
        (
            "a forgotten limit",
            "a told limit stays",
            "now - told > KNOWN or",
            "false or",
            "an upstream that is called once a day",
        ),
        (
            "only what remains",
            "without a told limit nothing counts",
            "  limit = limit or known and known.limit or configured > 0 and configured\n",
            "",
            "calls that are refused",
        ),
    ]
]

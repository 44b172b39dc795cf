"""What follows from a refused call: for its upstream, and for its generation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from broker.queue.commands import Done
from worker.claims import Claim
from worker.hand_back import BUSY_WAIT, FIRST_DELAY, LONGEST_DELAY, POISON, _is_over, _is_poison, _refusal, outcome_of
from worker.upstream.errors import UpstreamError, from_broken_connection, from_response


def claim(lane: str = "one", resource: str = "one", **meta: object) -> Claim:
    fields = {name.encode(): str(value).encode() for name, value in meta.items()}
    return Claim("gen_x", 1, "1.own", 1, b"", {b"ln": lane.encode(), **fields}, resource, resource)


def error(status: int, **headers: str) -> UpstreamError:
    return from_response(status, {name.replace("_", "-"): value for name, value in headers.items()}, {}, ())


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (error(429), "busy"),
        (error(429, retry_after="7"), "busy"),
        (error(503, retry_after="7"), "busy"),
        (error(503), "fail"),
        (error(500), "fail"),
        (from_broken_connection(started=False), "fail"),
        (error(400), "none"),
        (error(404), "none"),
    ],
)
def test_the_outcome_tells_busy_from_broken(failure: UpstreamError, outcome: str) -> None:
    assert outcome_of(failure) == outcome


def test_a_busy_upstream_says_when_it_is_called_again() -> None:
    """The generation itself is called a moment later, so that any other one is tried first."""
    refusal = _refusal(claim(), error(429, retry_after="7"))
    assert (refusal.reason, refusal.retry_after, refusal.wait) == ("upstream_busy", 7.0, 7.0 + BUSY_WAIT)


def test_a_refused_generation_waits_behind_the_others_for_longer_each_time() -> None:
    """The refusal may be about the request itself: one that is larger than the upstream's rate is always refused."""
    delays = [_refusal(claim(tk=ticket), error(429, retry_after="7")).delay for ticket in range(1, 20)]
    assert delays[0] == 7 + BUSY_WAIT
    assert delays[-1] == 7 + LONGEST_DELAY
    assert all(shorter <= longer for shorter, longer in pairwise(delays))


def test_another_upstream_may_take_a_refused_generation_at_once() -> None:
    assert _refusal(claim("one,two", "one"), error(429, retry_after="7")).delay == 0
    assert _refusal(claim("one,two", "two", tk=2), error(429, retry_after="7")).delay == BUSY_WAIT


def test_without_retry_after_it_is_called_again_soon() -> None:
    waits = {_refusal(claim(), error(429)).wait for _ in range(20)}
    assert all(BUSY_WAIT < wait < 3 * BUSY_WAIT for wait in waits)
    assert len(waits) > 1


def test_a_failed_call_delays_its_own_generation_longer_each_time() -> None:
    """The upstream is not held back: the request itself may be the cause."""
    refusals = [_refusal(claim(nb=failures), error(500)) for failures in range(12)]
    delays = [refusal.delay for refusal in refusals]
    assert (delays[0], delays[-1]) == (FIRST_DELAY, LONGEST_DELAY)
    assert all(shorter <= longer for shorter, longer in pairwise(delays))
    assert {refusal.retry_after for refusal in refusals} == {None}


def test_the_next_upstream_of_a_lane_is_asked_at_once() -> None:
    first = _refusal(claim("one,two", "one"), error(500))
    assert (first.lane, first.delay, first.wait) == ("two,one", 0.0, 0.0)
    second = _refusal(claim("two,one", "two", nb=1), error(500))
    assert (second.lane, second.delay > 0) == ("two,one", True)


@pytest.mark.parametrize(("qd", "is_over"), [("", False), (5000, True), (7000, False)])
def test_a_generation_fails_now_if_its_waiting_would_end_before_the_next_try(qd: object, is_over: bool) -> None:
    assert _is_over(claim(qd=qd), 6.0) == is_over


@pytest.mark.parametrize(
    ("failures", "first_ms", "accepted_ms", "failure", "is_poison"),
    [
        (POISON - 1, 1000, 2000, error(500), True),
        (POISON - 2, 1000, 2000, error(500), False),  # not often enough
        (POISON - 1, 1000, 500, error(500), False),  # the upstream accepted nothing since
        (POISON - 1, 1000, 2000, UpstreamError("upstream_timeout", "", retryable=True), True),
        (POISON - 1, 1000, 2000, UpstreamError("upstream_unreachable", "", retryable=True), False),
    ],
)
def test_a_request_is_to_blame_if_others_were_accepted_meanwhile(
    failures: int, first_ms: int, accepted_ms: int, failure: UpstreamError, is_poison: bool
) -> None:
    known: Any = claim(nb=failures, fb=first_ms)
    assert _is_poison(known, failure, Done(accepted_ms, 3000, circuit_open=False)) == is_poison
    assert not _is_poison(known, failure, None)

"""Derived metrics: token gaps, delivery timings, sums over processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from broker.fanout.feed import Feed
from broker.fanout.timing import DeliveryTimings
from broker.generation import Generation
from broker.history.buckets import middle_of
from broker.history.recorder import Figures, Series
from broker.ids import Cursor, new_id
from broker.runtime.counters import GAPS, Buckets
from broker.runtime.prometheus import Exposition, Families
from broker.settings.settings import Settings
from broker.settings.upstreams import MOST_LABELS, OTHER_MODELS
from worker.attempt import Attempt, Ending
from worker.claims import Claim
from worker.counters import WorkerCounters
from worker.upstream.chunks import Chunk
from worker.upstream.errors import UpstreamError

NOW = int(time.time() * 1000)


def attempt_of(model: str, ordinal: int = 1, **meta: bytes) -> Attempt:
    known = {b"tn": b"anna", b"md": model.encode(), b"ca": b"%d" % (NOW - 250)}
    known |= {name.encode(): one for name, one in meta.items()}
    return Attempt(Claim("gen_x", NOW * 1024, "own", ordinal, b"", known, "default", "default"), lambda _: None)


def received(attempt: Attempt, at_ms: int, tokens: int = 1) -> None:
    attempt.push([Chunk(b"c", b"{}", tokens, (), None)])
    attempt.items[-2] = b"%d" % at_ms


def test_token_gaps_are_counted_once() -> None:
    counters, attempt = WorkerCounters(Settings()), attempt_of("m")
    counters.claimed(attempt)
    received(attempt, 900)
    counters.update()
    received(attempt, 920)
    received(attempt, 925, tokens=0)  # a role or usage: without text
    counters.update()
    received(attempt, 960)
    received(attempt, 960)
    counters.closed(attempt)
    gaps = counters.gaps["default", "m"]
    assert sum(gaps.counts) == 3
    assert gaps.sum == pytest.approx(0.020 + 0.040 + 0)
    assert counters.bytes["default", "m"] == 5 * len(b"{}")


def test_foreign_strings_do_not_become_label_values() -> None:
    """Models of a pattern do, up to a number."""
    counters = WorkerCounters(Settings())
    models = [f"m-{number}" for number in range(MOST_LABELS)]
    for number, model in enumerate([*models, "another", "m 1"]):
        attempt = attempt_of(model, ordinal=2, why=b"worker_lost" if number else b"a story")
        counters.claimed(attempt)
        counters.begun(attempt)
        counters.finished(attempt, UpstreamError(f"code-{number}", "…"))
        counters.closed(attempt)
    assert set(counters.attempts) == {("default", label) for label in (*models, OTHER_MODELS)}
    assert counters.resets == {("worker_lost",): MOST_LABELS + 1, ("other",): 1}
    assert {code for *_, code in counters.ended} == {"other"}


def test_the_wait_is_measured_once_by_its_last_reason() -> None:
    """For the first attempt of a generation, if the upstream accepts its call."""
    counters = WorkerCounters(Settings())
    refused, *accepted = [
        attempt_of("m"),
        attempt_of("m"),
        attempt_of("m", wr=b"upstream_busy"),
        attempt_of("m", wr=b"a story"),
        attempt_of("m", ordinal=2),
    ]
    counters.claimed(refused)
    counters.closed(refused)
    for attempt in accepted:
        counters.claimed(attempt)
        counters.begun(attempt)
    assert {reason: sum(waits.counts) for (reason,), waits in counters.queue_waits.items()} == {
        "queued": 2,
        "upstream_busy": 1,
    }
    assert counters.queue_waits[("upstream_busy",)].sum == pytest.approx(0.25)


def test_a_scheduled_generation_does_not_wait_until_its_time() -> None:
    counters, attempt = WorkerCounters(Settings()), attempt_of("m", ra=b"%d" % (NOW - 100))
    counters.claimed(attempt)
    counters.begun(attempt)
    assert counters.queue_waits[("queued",)].sum == pytest.approx(0.1, abs=0.001)  # the clock's float


def test_the_history_counts_each_token_once() -> None:
    """As they arrive; a chunk can have several, so the usage adds the rest at the end, and takes none away."""
    for usage, expected in ((b'{"completion_tokens":12}', 12), (b'{"completion_tokens":1}', 4), (b"{}", 4)):
        figures, attempt = Figures(), attempt_of("m")
        counters = WorkerCounters(Settings(), figures)
        counters.claimed(attempt)
        received(attempt, 10, tokens=3)
        counters.count_tokens()
        counters.update()
        received(attempt, 20)
        counters.first_token(attempt, 0.0)
        attempt.ending = Ending(b"d", "completed", b"", "", usage, b"", b"")
        counters.finished(attempt, None)
        counters.closed(attempt)
        counts = figures.take()[0].counts[Series("anna", "m", "default")]
        [first_token] = [name for name in counts if name.startswith("h")]
        assert counts == {"t": expected, "d": 1, first_token: 1}
        assert middle_of(int(first_token[1:])) >= 0.25 / 1.09  # from the creation


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def estimate(self) -> float:
        return self.now


def feed_of(attempt: int, seq: int, first_token_at: float | None = None) -> Feed:
    gid = new_id(NOW, "default")
    state: Any = (
        gid,
        "in_progress",
        "m",
        NOW / 1000,
        1.0,
        first_token_at,
        None,
        1,
        Cursor(attempt, seq),
        None,
        None,
        {},
    )
    return Feed(Generation(*state), "default", lambda *_: None)


def entry(attempt: int, seq: int, at_ms: int, kind: bytes = b"c") -> tuple[bytes, list[bytes]]:
    return b"%d-%d" % (attempt, seq), [b"t", kind, b"m", b"%d" % at_ms, b"d", b"{}"]


def test_chunks_delivered_in_one_pass_have_no_gap_between_them() -> None:
    attempt = NOW * 1024
    clock = Clock(NOW / 1000)
    timings: Any = DeliveryTimings(clock)  # pyright: ignore[reportArgumentType]
    feed = feed_of(0, 1)
    for at_ms, entries in ((0, [(0, b"st")]), (80, [(1, b"c")]), (100, [(2, b"c"), (3, b"c"), (4, b"c")])):
        feed.extend([entry(attempt, seq, at_ms, kind) for seq, kind in entries])
        clock.now = (NOW + at_ms + 3) / 1000
        timings.delivered(feed, feed.tail)
        timings.delivery_ended(feed.tail, feed.newest)
    gaps = timings.gaps()
    assert sum(gaps.counts) == 4  # to the first chunk, to the next, and two within one write
    assert gaps.counts[0] >= 2
    assert sum(timings.first_tokens.counts) == 1
    assert timings.first_tokens.sum == pytest.approx(0.083, abs=1e-4)
    assert timings.delays.sum == pytest.approx(3 * 0.003, abs=1e-4)
    timings.delivered(feed, feed.tail)  # nothing new
    assert sum(timings.gaps().counts) == 4


def test_a_late_reader_has_no_time_to_first_token() -> None:
    timings = DeliveryTimings(Clock(NOW / 1000))  # pyright: ignore[reportArgumentType]
    feed = feed_of(NOW * 1024, 7, first_token_at=1.0)
    feed.extend([entry(NOW * 1024, 8, 5)])
    timings.delivered(feed, feed.tail)
    assert sum(timings.first_tokens.counts) == 0


def test_metrics_of_several_processes_are_added_up(tmp_path: Path) -> None:
    buckets = Buckets(GAPS)
    buckets.observe(0.003)

    def collect(families: Families) -> None:
        families.counter("tokencast_a", "A.", {("x",): 2}, ("of",))
        families.gauge("tokencast_subscriber_lag_events", "The most.", {(): 7})
        families.histogram("tokencast_b", "B.", {(): buckets})

    one, other = (Exposition(collect, str(tmp_path)) for _ in range(2))
    other._write()  # pyright: ignore[reportPrivateUsage]
    (tmp_path / "half.json").write_text(
        '[["tokencast_a", '
    )  # no process writes this, but it is the result of a full disk
    text = one.answer("", Families())[0].decode()
    assert 'tokencast_a_total{of="x"} 4.0' in text
    assert "tokencast_subscriber_lag_events 7.0" in text
    assert 'tokencast_b_bucket{le="0.002"} 0.0' in text
    assert 'tokencast_b_bucket{le="0.005"} 2.0' in text
    assert "tokencast_b_count 2.0" in text
    assert text.count("# TYPE tokencast_b histogram") == 1

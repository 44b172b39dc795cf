"""Timing as the subscribers of this process see it, recorded once per log and delivery, independent of the number of
subscribers."""

from __future__ import annotations

import random
from bisect import bisect_left
from time import monotonic

from broker.events import RawEntry
from broker.fanout.feed import Feed
from broker.ids import Cursor, created_ms
from broker.redis.clock import RedisClock
from broker.runtime.counters import GAPS, ROUND_TRIPS, WAITS, Buckets

TIMED = 100  # up to this many logs, all are timed
SAMPLE = 0.1  # fraction of the others


class DeliveryTimings:
    """Timings of logs that have live subscribers here. Events in one write have no gap between them, as their readers
    see it."""

    def __init__(self, clock: RedisClock) -> None:
        self._clock = clock
        self._gaps = Buckets(GAPS)
        self._batched = 0
        self.passes = 0
        self.delays = Buckets(ROUND_TRIPS)
        """From an event's arrival at the worker to the end of the delivery that wrote it, one event per delivery. By
        Redis's clock: exact to a millisecond, and to this process's estimate of that clock."""
        self.first_tokens = Buckets(WAITS)
        """From the creation to the write of the first chunk."""

    def should_time(self, logs: int) -> bool:
        """Return whether one more log is timed. With one reader each, timing all of a thousand logs would cost an
        eighth more."""
        return logs <= TIMED or random.random() < SAMPLE

    def delivered(self, feed: Feed, tail: Cursor) -> None:
        """Note that the feed's subscribers have received everything up to the tail. Takes half a microsecond: the calls
        are unrolled."""
        now = monotonic()
        attempt, seq = tail
        if attempt == feed.delivered_attempt:
            events = seq - feed.delivered_seq
            if events > 0:
                gap = now - feed.delivered_at
                gaps = self._gaps
                gaps.counts[bisect_left(GAPS, gap)] += 1
                gaps.sum += gap
                self._batched += events - 1
        else:
            feed.delivered_attempt = attempt
        feed.delivered_seq, feed.delivered_at = seq, now
        if feed.has_chunk and not feed.first_chunk_delivered:
            feed.first_chunk_delivered = True
            self.first_tokens.observe(max(0.0, self._clock.estimate() - created_ms(feed.gid) / 1000))

    def delivery_ended(self, tail: Cursor, newest: RawEntry | None) -> None:
        """Note the end of a delivery; `newest` was the feed's newest entry when it began."""
        self.passes += 1
        if newest is not None:
            arrived = (tail.attempt >> 10) + int(newest[1][3])  # an attempt's number contains its start time
            self.delays.observe(max(0.0, self._clock.estimate() - arrived / 1000))

    def gaps(self) -> Buckets:
        """Return the gaps between two events, at the last subscriber of each delivery."""
        gaps = Buckets(GAPS)
        gaps.counts[:] = self._gaps.counts
        gaps.counts[0] += self._batched
        gaps.sum = self._gaps.sum
        return gaps

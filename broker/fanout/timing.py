"""What the readers of this process see of the streams' rhythm: noted once per log and pass, however many read it."""

from __future__ import annotations

import random
from bisect import bisect_left
from time import monotonic

from broker.events import RawEntry
from broker.fanout.feed import Feed
from broker.ids import Cursor, created_ms
from broker.redis.clock import RedisClock
from broker.runtime.counters import GAPS, ROUND_TRIPS, WAITS, Buckets

TIMED = 100  # logs that are all timed
SAMPLE = 0.1  # of those beyond


class DeliveryTimings:
    """Of logs that somebody reads here, live. What goes out in one write has no gap between its events, as its
    readers see it."""

    def __init__(self, clock: RedisClock) -> None:
        self._clock = clock
        self._gaps = Buckets(GAPS)
        self._together = 0
        self.passes = 0
        self.delays = Buckets(ROUND_TRIPS)
        """From an event's arrival at the worker to the end of the pass that gave it to the readers, one event for each
        pass. By Redis's clock: exact to a millisecond, and to what this process knows of that clock."""
        self.first_tokens = Buckets(WAITS)
        """From the creation to the first chunk's being written."""

    def chooses(self, logs: int) -> bool:
        """Whether one more log is timed. With a reader each, a thousand logs would cost an eighth more if all were."""
        return logs <= TIMED or random.random() < SAMPLE

    def beat(self, feed: Feed, tail: Cursor) -> None:
        """The feed's readers have been given all of it up to the tail. Half a microsecond: the calls are unrolled."""
        now = monotonic()
        attempt, seq = tail
        if attempt == feed.served_attempt:
            events = seq - feed.served_seq
            if events > 0:
                gap = now - feed.served_at
                gaps = self._gaps
                gaps.counts[bisect_left(GAPS, gap)] += 1
                gaps.sum += gap
                self._together += events - 1
        else:
            feed.served_attempt = attempt
        feed.served_seq, feed.served_at = seq, now
        if feed.has_chunk and not feed.shown:
            feed.shown = True
            self.first_tokens.observe(max(0.0, self._clock.estimate() - created_ms(feed.gid) / 1000))

    def passed(self, tail: Cursor, newest: RawEntry | None) -> None:
        """A pass has ended with a feed of which this was new when it began with it."""
        self.passes += 1
        if newest is not None:
            arrived = (tail.attempt >> 10) + int(newest[1][3])  # an attempt's number holds when it began
            self.delays.observe(max(0.0, self._clock.estimate() - arrived / 1000))

    def gaps(self) -> Buckets:
        """Between two events, to the last reader of each pass."""
        gaps = Buckets(GAPS)
        gaps.counts[:] = self._gaps.counts
        gaps.counts[0] += self._together
        gaps.sum = self._gaps.sum
        return gaps

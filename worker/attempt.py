"""`Attempt`: the events of one attempt, and the number of them that Redis has acknowledged.

Events are kept until shortly after the attempt's end, so that events that Redis loses can be sent again under the same
ids.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from worker.claims import Claim
from worker.continuation.chunks import Continuation
from worker.upstream.chunks import Chunk

MAX_CALL_BYTES = 256 * 1024
MAX_CALL_EVENTS = 512  # 1.8 ms of the server's time, which blocks its other clients
MAX_PENDING_BYTES = 1 << 20  # bytes that a producer may be ahead of Redis before it must wait

# Replies after which the attempt is still ours and ends as failed, with this code and message. After any other refusal
# the attempt belongs to another worker, or the generation has ended.
FAILING_REPLIES = {
    "TOOBIG": ("output_too_large", "The completion exceeds the maximum size of a generation."),
    "FULL": ("storage_full", "Redis is full and cannot store the completion."),
    "ERROR": ("internal_error", "Redis rejected the completion."),
}


class AttemptEnded(Exception):
    """Redis accepts no more events of this attempt; `reason` is its reply."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Ending:
    """The terminal event, and the fields of the generation's meta that are written with it."""

    type: bytes
    status: str
    data: bytes
    finish_reason: str
    usage: bytes
    error: bytes
    choices: bytes


class Attempt:
    """Events of one attempt, between the producer (`push`, `finish`) and the appender (the rest). Seq 0 is the event
    with which it begins, so the first pushed event has seq 1, and `acked` is both the last seq that Redis has and the
    number of events."""

    __slots__ = (
        "_drain_waiter",
        "_finish_waiter",
        "_notify",
        "_scope",
        "_single_call",
        "_sizes",
        "_token_counts",
        "acked",
        "began",
        "beginning",
        "begun",
        "claim",
        "continuation",
        "ended",
        "ending",
        "epoch",
        "items",
        "known_at",
        "known_on",
        "published",
        "refused_since",
        "replied_at",
        "reply_finished",
        "sent",
        "touched_at",
    )

    def __init__(self, claim: Claim, notify: Callable[[Attempt], None], connection: int = 0) -> None:
        self.claim = claim
        self.begun = False
        """Whether the log has the attempt's first event, or will have it with the first append."""
        self.beginning: asyncio.Future[None] | None = None
        """The write of the first event, once it has been sent."""
        self.continuation: Continuation | None = None
        """The newest call that went on after the text of another one."""
        self.epoch = claim.epoch
        self.known_at = claim.attempt >> 10
        """Last time at which Redis is known to have had the generation, in ms of Redis's clock."""
        self.known_on = connection
        """Number of the appender's connection on which Redis is known to have had it."""
        self.items: list[bytes] = []  # type, ms, data, type, ms, data, …: the order of a script's arguments
        self._sizes: list[int] = []  # bytes up to and including each event
        self._token_counts: list[int] = []  # chunks with tokens up to and including each event
        self.published = False
        self.reply_finished = False
        """Whether each choice has its finish reason."""
        self.acked = 0
        self.sent = 0
        self.ending: Ending | None = None
        self.ended: str | None = None
        self.began = time.monotonic()
        self.replied_at = self.touched_at = self.began
        self.refused_since: float | None = None
        self._notify = notify
        self._scope: asyncio.Timeout | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._finish_waiter: asyncio.Future[None] | None = None
        self._single_call = False

    # The producer's side.

    def push(self, chunks: Sequence[Chunk]) -> None:
        """Add chunks that arrived now. If `congested` is true afterwards, await `drain` before the next push."""
        if self.ended is not None:
            return
        items, ends, counts = self.items, self._sizes, self._token_counts
        at = self._age()
        size, count = (ends[-1], counts[-1]) if ends else (0, 0)
        for kind, data, tokens, *_ in chunks:
            items += (kind, at, data)
            size += len(data)
            count += tokens
            ends.append(size)
            counts.append(count)
        self.published = True
        self._notify(self)

    @property
    def congested(self) -> bool:
        return self.pending_bytes > MAX_PENDING_BYTES

    async def drain(self) -> None:
        """Wait until Redis has caught up, or the attempt has ended."""
        while self.congested and self.ended is None:
            self._drain_waiter = asyncio.get_running_loop().create_future()
            await self._drain_waiter

    @asynccontextmanager
    async def run_until(self, deadline: float) -> AsyncGenerator[None]:
        """Run the body. Raises AttemptEnded as soon as Redis accepts no more events, TimeoutError at the deadline."""
        try:
            async with asyncio.timeout_at(deadline) as self._scope:
                if self.ended is not None:
                    raise AttemptEnded(self.ended)
                yield
        except TimeoutError:
            if self.ended is not None:
                raise AttemptEnded(self.ended) from None
            raise
        finally:
            self._scope = None

    async def finish(self, ending: Ending) -> None:
        """Write the terminal event and return once Redis has it. Raises AttemptEnded if Redis rejects it."""
        if self.ended is not None:
            raise AttemptEnded(self.ended)
        self._finish_waiter = asyncio.get_running_loop().create_future()
        self._add(ending.type, ending.data)
        self.ending = ending
        self._notify(self)
        try:
            await self._finish_waiter
        finally:
            self._finish_waiter = None  # its exception refers to this frame: a reference cycle

    def drop_unsent(self) -> None:
        """Drop the events that were never sent, after an end that leaves the attempt ours. The rest is sent in one
        call, together with the terminal event. Events that were sent are kept even if they were rejected: an earlier
        call may have written them and lost its reply."""
        del self.items[3 * self.sent :], self._sizes[self.sent :], self._token_counts[self.sent :]
        self.acked = min(self.acked, self.sent)
        self.ended = self.ending = None
        self._single_call = True

    @property
    def token_count(self) -> int:
        """Number of chunks with tokens."""
        return self._token_counts[-1] if self._token_counts else 0

    def events(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over (type, data) of the events."""
        for at in range(0, len(self.items), 3):
            yield self.items[at], self.items[at + 2]

    def _add(self, kind: bytes, data: bytes) -> None:
        self._sizes.append((self._sizes[-1] if self._sizes else 0) + len(data))
        self._token_counts.append(self.token_count)
        self.items += (kind, self._age(), data)

    def _age(self) -> bytes:
        return b"%d" % ((time.monotonic() - self.began) * 1000)

    # The appender's side.

    @property
    def pending_bytes(self) -> int:
        """Bytes of events that Redis has not acknowledged."""
        ends = self._sizes
        return (ends[-1] - (ends[self.acked - 1] if self.acked else 0)) if ends else 0

    @property
    def all_sent(self) -> bool:
        """Whether nothing is left to send."""
        return self.ended is not None or (self.acked == len(self._sizes) and self.ending is None)

    @property
    def awaits_ending(self) -> bool:
        """Whether sending waits for the terminal event: after `drop_unsent`, Redis would reject the rest without it."""
        return self._single_call and self.ending is None

    @property
    def size(self) -> int:
        return self._sizes[-1] if self._sizes else 0

    @property
    def count(self) -> int:
        return len(self._sizes)

    def next_batch(self) -> int:
        """Return the last seq of the next call: within the limits, but at least one event."""
        ends, first = self._sizes, self.acked
        if self._single_call or first == len(ends):
            return len(ends)
        limit = (ends[first - 1] if first else 0) + MAX_CALL_BYTES
        last = len(ends) if ends[-1] <= limit else max(bisect_right(ends, limit, first), first + 1)
        return min(last, first + MAX_CALL_EVENTS)

    def tokens_until(self, last: int) -> int:
        return self._token_counts[last - 1] if last else 0

    def token_times(self, first: int) -> list[int]:
        """Return the arrival times of the events with tokens, from event number `first` on, in ms since the start."""
        counts = self._token_counts[first:]
        before = [self._token_counts[first - 1] if first else 0, *counts]
        times = self.items[3 * first + 1 :: 3]
        return [int(at) for at, count, known in zip(times, counts, before, strict=False) if count > known]

    @property
    def first_token_ms(self) -> int | None:
        """Arrival time of the first event with a token, in ms since the start; None if there is none."""
        at = bisect_left(self._token_counts, 1)
        return int(self.items[3 * at + 1]) if at < len(self._token_counts) else None

    def acknowledge(self, last: int) -> None:
        """Record that Redis has the events up to seq `last`, which is lower than before if Redis lost some."""
        acked = min(last, len(self._sizes))
        if acked > self.acked:  # a successful touch does not show that appends work
            self.refused_since = None
        self.acked = acked
        if self._drain_waiter is not None and not self.congested:
            _resolve(self._drain_waiter)

    def confirm_ending(self) -> None:
        """Record that Redis has the terminal event."""
        if self._finish_waiter is not None:
            _resolve(self._finish_waiter)

    def abort(self, reason: str) -> None:
        """Record that Redis accepts no more events. `run_until`, `drain` and `finish` raise AttemptEnded or return."""
        self.ended = reason
        if self._drain_waiter is not None:
            _resolve(self._drain_waiter)
        if self._finish_waiter is not None and not self._finish_waiter.done():
            self._finish_waiter.set_exception(AttemptEnded(reason))
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

"""Fan-out: one reader, one buffer, one write.

Subscribers cost Redis nothing: a generation is read once per process and framed once per dialect, and each subscriber
is a position in the shared frames. One plain loop writes to each subscriber everything it has not received, in one
write; waking a task per subscriber would cost 1 to 4 µs each, the loop costs 0.1. A subscriber that cannot take more
falls behind, in the shared buffer or, once the buffer has moved on, in Redis. A bad peer affects no others: each write
is independent.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from broker.concurrency.cancellation import cancel_and_wait
from broker.concurrency.single_flight import SingleFlight
from broker.errors import GenerationGone, GenerationNotFound, StorageUnavailable
from broker.events import STARTED, Event
from broker.fanout.backfill import Backfill
from broker.fanout.buffer import FrameCache, Slice
from broker.fanout.dialect import Dialect, EndReason
from broker.fanout.feed import Feed
from broker.fanout.reader_pool import ReaderPool
from broker.fanout.scheduler import DeliveryScheduler, FixedSource, Source
from broker.fanout.subscriber import Subscriber, Wire
from broker.fanout.timing import DeliveryTimings
from broker.generation import Generation
from broker.ids import START, Cursor
from broker.runtime.counters import Count
from broker.store.store import Store

logger = logging.getLogger("tokencast.hub")

HIGH_WATER = 64 * 1024  # bytes that wait in a subscriber's transport; the rest waits in the shared buffer
TICKS = 15  # per heartbeat: the resolution at which idle and stalled connections are measured


class Hub:
    """The fan-out of one process. `run()` must be running while anything is followed."""

    def __init__(self, store: Store, *, heartbeat: float, cache_bytes: int) -> None:
        self._store = store
        self._states = SingleFlight(store.state)
        self._heartbeat = heartbeat
        self._tasks: set[asyncio.Task[None]] = set()
        self._feeds: dict[str, Feed] = {}
        self._subscribers: dict[Feed, dict[Subscriber, None]] = {}
        self.stalled: dict[Subscriber, None] = {}
        self._scheduler = DeliveryScheduler()
        self._readers = ReaderPool(store.redis, secrets.token_hex(6), self._spawn, self._deliver, self._resync)
        self._backfill = Backfill(store, self._spawn, self._on_page)
        self.cache = FrameCache(cache_bytes)
        self.timings = DeliveryTimings(store.clock)
        self.ended = Count()  # responses that ended, by reason
        self.delivered = Count()  # events delivered, by dialect
        self.tick = 0  # counts TICKS per heartbeat
        self.draining = False  # new subscribers are ended at once

    # --- feeds --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, gid: str, tenant: str) -> AsyncGenerator[tuple[Feed, Generation]]:
        """Keep a feed up to date until the context is left; yield it with the generation as it was found. Raises what
        Store.state raises."""
        feed = self._feeds.get(gid)
        known = feed.tail if feed is not None else START
        generation = await self._states.call(gid, tenant)
        feed = self._feeds.get(gid)
        went_back = False
        if feed is None:
            feed = self._feeds[gid] = Feed(generation, tenant, self.cache.on_access)
            feed.timed = self.timings.should_time(len(self._feeds))
        else:
            went_back = generation.cursor < known or (feed.ended and generation.cursor != feed.tail)
            if feed.users == 0 or went_back:
                feed.refresh(generation)
        feed.users += 1
        feed.checked = self.tick
        try:
            if not feed.ended and feed not in self._readers:
                await self._readers.follow(feed)
            if went_back:
                await self.deliver((feed,))  # to its earlier subscribers
            yield feed, generation
        finally:
            feed.users -= 1
            if feed.users == 0:
                self._release(feed)

    def waiting_feeds(self) -> list[Feed]:
        """Return the followed feeds whose generations wait in the queue."""
        return [feed for feed in self._feeds.values() if feed.users and feed.waits is not None and not feed.ended]

    def _release(self, feed: Feed) -> None:
        self._readers.unfollow(feed)
        for buffer in feed.buffers.values():
            buffer.seal_all()
        self._drop_if_empty(feed)

    def _drop_if_empty(self, feed: Feed) -> None:
        if feed.users == 0 and not any(buffer.segments for buffer in feed.buffers.values()):
            self._feeds.pop(feed.gid, None)

    async def _resync(self, feed: Feed) -> None:
        """Take over the state of the log from Redis, unless events arrived meanwhile. Holes are read when a subscriber
        reaches them; a subscriber at a position that the log no longer has must start again."""
        tail = feed.tail
        positions = [(subscriber, subscriber.position) for subscriber in self._subscribers.get(feed, ())]
        feed.suspect = False
        try:
            generation = await self._store.state(feed.gid, feed.tenant)
        except (GenerationNotFound, GenerationGone):
            feed.mark_gone()
            self._end_all(feed, EndReason.GONE)
        except StorageUnavailable:
            pass  # the reader meets the same error and reconnects
        else:
            for subscriber, position in positions:
                if generation.lacks(position):
                    self.end(subscriber, EndReason.RESET)
            if feed.tail == tail:
                feed.refresh(generation)

    async def _check_idle(self) -> None:
        """Check the feeds without news: a blocked read does not notice that its stream was deleted or went back."""
        for feed in list(self._feeds.values()):
            idle = self.tick - feed.checked >= TICKS
            if feed.users and not feed.ended and (idle or feed.suspect):
                feed.checked = self.tick
                await self._resync(feed)
                await self.deliver((feed,))

    # --- subscribers --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, feed: Feed, dialect: Dialect, wire: Wire, position: Cursor, *, has_received: bool = False
    ) -> AsyncGenerator[Subscriber]:
        """Write everything after `position` to the wire as it arrives, until `ended`. `has_received`: the reader has
        received a part of this attempt before."""
        subscriber = Subscriber(feed, feed.buffer(dialect), wire, position)
        subscriber.has_received = has_received
        subscriber.last_write_tick = self.tick
        wire.attach(partial(self.resume, subscriber), partial(subscriber.end, EndReason.LEFT))
        self._subscribers.setdefault(feed, {})[subscriber] = None
        if self.draining:
            self.end(subscriber, EndReason.DRAINING)
        else:
            self.push(subscriber)
        try:
            yield subscriber
        finally:
            self._remove(subscriber)

    def _remove(self, subscriber: Subscriber) -> None:
        subscriber.end(EndReason.LEFT)
        self.ended[(subscriber.ended.result().value,)] += 1
        self.delivered[(subscriber.dialect,)] += subscriber.take_event_count()
        self.stalled.pop(subscriber, None)
        members = self._subscribers.get(subscriber.feed)
        if members is not None:
            members.pop(subscriber, None)
            if not members:
                del self._subscribers[subscriber.feed]

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._subscribers.values()))

    def subscribers_of(self, gid: str) -> list[Subscriber]:
        feed = self._feeds.get(gid)
        return [] if feed is None else list(self._subscribers.get(feed, ()))

    def all_subscribers(self) -> list[Subscriber]:
        return [subscriber for members in self._subscribers.values() for subscriber in members]

    # --- delivery -----------------------------------------------------------------------------------------

    async def deliver(self, feeds: Iterable[Feed]) -> None:
        """Deliver what is new in these feeds, which did not come from a reader."""
        await self._deliver(FixedSource(feeds))

    async def _deliver(self, source: Source) -> None:
        """Deliver to all subscribers of the feeds that are due, in slices short enough for the event loop. More feeds
        may become due meanwhile, also the current one: then it is delivered again."""
        turns, due = self._scheduler, source.due
        try:
            await turns.begin(source)
            while due:
                del due[feed := next(iter(due))]
                feed.checked = self.tick
                tail, newest, feed.newest = feed.tail, feed.newest, None
                members = tuple(self._subscribers.get(feed, ()))
                start = buffer = part = None
                for subscriber in members:
                    # Nearly all subscribers are at the position of the one before and get the same slice without
                    # further checks.
                    if subscriber.position is not start or subscriber.buffer is not buffer:
                        start, buffer = subscriber.position, subscriber.buffer
                        part = _plain(feed, buffer.slice(start))
                    try:
                        if part is None or not subscriber.flowing or not subscriber.wire.offer(part):
                            self.push(subscriber)
                        else:
                            subscriber.position = part.end
                            subscriber.last_write_tick = self.tick
                    except Exception:  # as in `push`
                        subscriber.end(EndReason.LEFT)
                    if time.monotonic() > turns.slice_end:
                        await turns.next_slice(source)
                        start = None  # the log may have changed
                if members and feed.timed:
                    self.timings.delivered(feed, tail)
                    if not due or feed in due:
                        self.timings.delivery_ended(tail, newest)
                if feed.ended:
                    self._readers.unfollow(feed)
        finally:
            turns.end(source)

    def push(self, subscriber: Subscriber) -> None:
        """Write to a subscriber what it has not received. Never raises: an error of its peer is its own."""
        try:
            self._push(subscriber)
        except Exception as error:  # a transport may raise anything once its peer is gone
            logger.debug("subscriber dropped: %s", type(error).__name__)
            subscriber.end(EndReason.LEFT)

    def _push(self, subscriber: Subscriber) -> None:
        wire, buffer, feed = subscriber.wire, subscriber.buffer, subscriber.feed
        if subscriber.stalled is not None:
            return None  # until `resume`; more data would hide whether the peer takes any
        while not subscriber.ended.done():
            if wire.closing:
                return subscriber.end(EndReason.LEFT)
            if (pending := wire.pending) > HIGH_WATER:
                return self.stall(subscriber, pending)
            part = buffer.slice(subscriber.position)
            if part is None:
                return self._wait_for_events(subscriber)
            if part.opens:
                if subscriber.has_received and not buffer.dialect.crosses_attempts:
                    return self.end(subscriber, EndReason.RESET)
                if part.opens == STARTED and subscriber.position.attempt > 0:
                    # A first attempt after another one: a failover lost the claim of the earlier attempt, so no `reset`
                    # was written.
                    self._write_notice(subscriber, buffer.state_at(subscriber.position).reset())
            if part.data:
                wire.write(part)
                subscriber.has_received = True
                subscriber.last_write_tick = self.tick
            position = subscriber.position = part.end
            if part.last:
                return subscriber.end(EndReason.ENDED)
            if position == feed.tail and not feed.ended:
                return None  # nearly always; another iteration would only find this out, at twice the cost
        return None

    def _wait_for_events(self, subscriber: Subscriber) -> None:
        """Handle a subscriber with nothing buffered after its position: it is at the tail, before a hole, or at a
        position that Redis has lost."""
        position, feed = subscriber.position, subscriber.feed
        if position < feed.tail:
            self._backfill.request(subscriber)
        elif feed.ended:
            subscriber.end(EndReason.ENDED) if position == feed.tail else self.end(subscriber, EndReason.RESET)
        elif position.attempt != feed.tail.attempt:
            feed.suspect = True

    def stall(self, subscriber: Subscriber, pending: int) -> None:
        """Write nothing more to a subscriber until `resume`; `pending`: bytes that its peer has not taken."""
        subscriber.stalled = (time.monotonic(), pending)
        self.stalled[subscriber] = None

    def resume(self, subscriber: Subscriber) -> None:
        """Continue writing to a subscriber whose wire can take more."""
        if subscriber.stalled is not None:
            subscriber.stalled = None
            self.stalled.pop(subscriber, None)
            self.push(subscriber)

    def end(self, subscriber: Subscriber, reason: EndReason) -> None:
        """End a response although its generation has not ended, with the dialect's closing bytes. Nothing happens if it
        has ended already."""
        if not subscriber.ended.done():
            self._write_notice(subscriber, subscriber.buffer.state_at(subscriber.position).end(reason))
        subscriber.end(reason)

    def _write_notice(self, subscriber: Subscriber, data: bytes) -> None:
        """Write bytes that are not in the log. Like `push`, never raises."""
        try:
            if data:
                subscriber.wire.write(Slice(data, subscriber.position))
        except Exception:
            subscriber.end(EndReason.LEFT)

    def _end_all(self, feed: Feed, reason: EndReason) -> None:
        for subscriber in tuple(self._subscribers.get(feed, ())):
            self.end(subscriber, reason)

    # --- holes --------------------------------------------------------------------------------------------

    def _on_page(self, subscriber: Subscriber, page: Sequence[Event], connects: bool) -> None:
        """Continue after the page after the position was read; `connects`: it follows the position without a gap."""
        if connects:
            self.push(subscriber)
        elif page:
            self._skip_trimmed(subscriber, page[0].cursor)
        else:
            self.end(subscriber, EndReason.STORAGE)

    def _skip_trimmed(self, subscriber: Subscriber, earliest: Cursor) -> None:
        """Skip a part of the log that was trimmed, if the dialect can express a gap."""
        state = subscriber.buffer.state_at(subscriber.position)
        notice = state.gap(subscriber.position, earliest, max(earliest, subscriber.feed.tail))
        if not notice:
            return self.end(subscriber, EndReason.STORAGE)
        subscriber.position = Cursor(earliest.attempt, earliest.seq - 1)
        self._write_notice(subscriber, notice)
        return self.push(subscriber)

    # --- time ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Check idle logs and free unused feeds, until cancelled."""
        checking: asyncio.Task[None] | None = None
        self._spawn(self._store.redis.topology.watch())
        while True:
            await asyncio.sleep(self._heartbeat / TICKS)
            self.tick += 1
            self._readers.rebalance()
            for feed in list(self._feeds.values()):
                self._drop_if_empty(feed)
            if checking is None or checking.done():
                checking = self._spawn(self._check_idle())

    async def close(self) -> None:
        await cancel_and_wait(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _plain(feed: Feed, part: Slice | None) -> Slice | None:
    """Return the slice if it holds only chunks up to the tail of a running log; `push` handles everything else."""
    plain = part is not None and part.data and not part.opens and part.end == feed.tail and not feed.ended
    return part if plain else None

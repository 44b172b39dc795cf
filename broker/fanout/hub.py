"""Fan-out: one reader, one buffer, one write.

Subscribers cost Redis nothing: a generation is read once per process, framed once per dialect, and each subscriber
is a position in the shared frames. One plain loop gives every subscriber all it has not seen in one write; waking a
task per subscriber would cost 1 to 4 µs each, the loop costs 0.1. Who cannot take more simply lags behind, in
the shared buffer or, once that has moved on, in Redis. One bad peer harms nobody: each write is on its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
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
from broker.fanout.buffer import Dialect, Slice
from broker.fanout.buffer_cache import FrameCache
from broker.fanout.feed import Feed
from broker.fanout.reader_pool import ReaderPool
from broker.fanout.scheduler import TURN_SECONDS, DeliveryScheduler, Known, Source
from broker.fanout.subscriber import Subscriber, Wire
from broker.fanout.timing import DeliveryTimings
from broker.generation import Generation
from broker.ids import START, Cursor
from broker.runtime.counters import Count
from broker.store.store import Store

logger = logging.getLogger("tokencast.hub")

HIGH_WATER = 64 * 1024  # bytes waiting in a subscriber's transport: enough, the rest waits in the shared buffer


class Hub:
    """The fan-out of one process. `run()` must be running while anything is followed."""

    def __init__(self, store: Store, *, heartbeat: float, send_timeout: float, cache_bytes: int) -> None:
        self._store = store
        self._states = SingleFlight(store.state)
        self._heartbeat = heartbeat
        self._send_timeout = send_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self._feeds: dict[str, Feed] = {}
        self._subscribers: dict[Feed, dict[Subscriber, None]] = {}
        self._stalled: dict[Subscriber, None] = {}
        self._turns = DeliveryScheduler()
        self._readers = ReaderPool(store.redis, secrets.token_hex(6), self._spawn, self._deliver, self._resync)
        self._pages = Backfill(store, self._spawn, self._arrived)
        self.cache = FrameCache(cache_bytes)
        self.rhythm = DeliveryTimings(store.clock)
        self.endings = Count()  # of responses, by why they ended
        self.delivered = Count()  # events, by dialect
        self._tick = 0
        self.draining = False

    # --- who reads what ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, gid: str, tenant: str) -> AsyncGenerator[tuple[Feed, Generation]]:
        """A feed that is kept up to date until it is left, and the generation as it was found. Raises what
        Store.state raises."""
        feed = self._feeds.get(gid)
        known = feed.tail if feed is not None else START
        generation = await self._states.call(gid, tenant)
        feed = self._feeds.get(gid)
        went_back = False
        if feed is None:
            feed = self._feeds[gid] = Feed(generation, tenant, self.cache.use)
            feed.timed = self.rhythm.chooses(len(self._feeds))
        else:
            went_back = generation.cursor < known or (feed.ended and generation.cursor != feed.tail)
            if feed.users == 0 or went_back:
                feed.refresh(generation)
        feed.users += 1
        feed.checked = self._tick
        try:
            if not feed.ended and feed not in self._readers:
                await self._readers.follow(feed)
            if went_back:
                await self.deliver((feed,))  # to those who were here before
            yield feed, generation
        finally:
            feed.users -= 1
            if feed.users == 0:
                self._leave(feed)

    def _leave(self, feed: Feed) -> None:
        self._readers.unfollow(feed)
        for view in feed.views.values():
            view.seal_all()
        self._forget_if_empty(feed)

    def _forget_if_empty(self, feed: Feed) -> None:
        if feed.users == 0 and not any(view.segments for view in feed.views.values()):
            self._feeds.pop(feed.gid, None)

    async def _resync(self, feed: Feed) -> None:
        """Takes the log as it is now, unless news came meanwhile. Holes are read by who stands before them; who stands
        where the log will not come again has to begin anew."""
        tail = feed.tail
        positions = [(subscriber, subscriber.position) for subscriber in self._subscribers.get(feed, ())]
        feed.doubted = False
        try:
            generation = await self._store.state(feed.gid, feed.tenant)
        except (GenerationNotFound, GenerationGone):
            feed.vanish()
            self._dismiss(feed, "gone")
        except StorageUnavailable:
            pass  # the reader meets it too, and comes back
        else:
            for subscriber, position in positions:
                if generation.lacks(position):
                    self.farewell(subscriber, "reset")
            if feed.tail == tail:
                feed.refresh(generation)

    async def _check_quiet(self) -> None:
        """A blocked read does not notice that its stream is gone, or went back: whoever is quiet is asked for."""
        for feed in list(self._feeds.values()):
            quiet = self._tick - feed.checked >= _TICKS
            if feed.users and not feed.ended and (quiet or feed.doubted):
                feed.checked = self._tick
                await self._resync(feed)
                await self.deliver((feed,))

    # --- subscribers -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, feed: Feed, dialect: Dialect, wire: Wire, position: Cursor, *, given: bool = False
    ) -> AsyncGenerator[Subscriber]:
        """Writes everything behind `position` to the wire, as it comes, until `ended`. `given`: the reader has
        been given a part of this attempt before."""
        subscriber = Subscriber(feed, feed.view(dialect), wire, position)
        subscriber.given = given
        subscriber.quiet_since = self._tick
        wire.attach(partial(self.resume, subscriber), partial(subscriber.end, "left"))
        self._subscribers.setdefault(feed, {})[subscriber] = None
        if self.draining:
            self.farewell(subscriber, "draining")
        else:
            self.push(subscriber)
        try:
            yield subscriber
        finally:
            self._remove(subscriber)

    def _remove(self, subscriber: Subscriber) -> None:
        subscriber.end("left")
        self.endings[(subscriber.ended.result(),)] += 1
        self.delivered[(subscriber.dialect,)] += subscriber.events()
        self._stalled.pop(subscriber, None)
        members = self._subscribers.get(subscriber.feed)
        if members is not None:
            members.pop(subscriber, None)
            if not members:
                del self._subscribers[subscriber.feed]

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._subscribers.values()))

    def everybody(self) -> list[Subscriber]:
        return [subscriber for members in self._subscribers.values() for subscriber in members]

    # --- the pass ----------------------------------------------------------------------------------------

    async def deliver(self, feeds: Iterable[Feed]) -> None:
        """To everybody who follows these feeds, what is new in them; no reader brought it."""
        await self._deliver(Known(feeds))

    async def _deliver(self, source: Source) -> None:
        """Passes over everybody who follows what is due, in turns short enough for the event loop. More may become due
        meanwhile, also in a feed that is being passed over: then it is passed over again."""
        turns, due = self._turns, source.due
        try:
            await turns.begin(source)
            while due:
                del due[feed := next(iter(due))]
                feed.checked = self._tick
                tail, newest, feed.newest = feed.tail, feed.newest, None
                members = tuple(self._subscribers.get(feed, ()))
                start = view = part = None
                for subscriber in members:
                    # Nearly all stand where the one before stood, and get the same with nothing in the way.
                    if subscriber.position is not start or subscriber.view is not view:
                        start, view = subscriber.position, subscriber.view
                        part = _plain(feed, view.slice(start))
                    try:
                        if part is None or not subscriber.flowing or not subscriber.wire.offer(part):
                            self.push(subscriber)
                        else:
                            subscriber.position = part.end
                            subscriber.quiet_since = self._tick
                    except Exception:  # as in `push`
                        subscriber.end("left")
                    if time.monotonic() > turns.until:
                        await turns.more(source)
                        start = None  # the log may be another by now
                if members and feed.timed:
                    self.rhythm.beat(feed, tail)
                    if not due or feed in due:
                        self.rhythm.passed(tail, newest)
                if feed.ended:
                    self._readers.unfollow(feed)
        finally:
            turns.end(source)

    def push(self, subscriber: Subscriber) -> None:
        """Gives a subscriber what it has not seen. Never raises: its peer's trouble is its own."""
        try:
            self._push(subscriber)
        except Exception as error:  # a transport may raise anything once its peer is gone
            logger.debug("subscriber dropped: %s", type(error).__name__)
            subscriber.end("left")

    def _push(self, subscriber: Subscriber) -> None:
        wire, view, feed = subscriber.wire, subscriber.view, subscriber.feed
        if subscriber.stalled is not None:
            return None  # until `resume`; more would hide whether it takes anything
        while not subscriber.ended.done():
            if wire.closing:
                return subscriber.end("left")
            if (pending := wire.pending) > HIGH_WATER:
                return self._stall(subscriber, pending)
            part = view.slice(subscriber.position)
            if part is None:
                return self._wait(subscriber)
            if part.opens:
                if subscriber.given and not view.dialect.crosses_attempts:
                    return self.farewell(subscriber, "reset")
                if part.opens == STARTED and subscriber.position.attempt > 0:
                    # A first attempt behind another one: a failover forgot that one's claim, so nobody wrote `reset`.
                    self._tell(subscriber, view.dialect.forget())
            if part.data:
                wire.write(part)
                subscriber.given = True
                subscriber.quiet_since = self._tick
            position = subscriber.position = part.end
            if part.last:
                return subscriber.end("ended")
            if position == feed.tail and not feed.ended:
                return None  # as nearly always: another turn would only find that out, at twice the cost
        return None

    def _wait(self, subscriber: Subscriber) -> None:
        """Nothing is held behind its position: it is at the tail, before a hole, or where the log was before Redis
        forgot some of it."""
        position, feed = subscriber.position, subscriber.feed
        if position < feed.tail:
            self._pages.ask(subscriber)
        elif feed.ended:
            subscriber.end("ended") if position == feed.tail else self.farewell(subscriber, "reset")
        elif position.attempt != feed.tail.attempt:
            feed.doubted = True

    def _stall(self, subscriber: Subscriber, pending: int) -> None:
        subscriber.stalled = (time.monotonic(), pending)
        self._stalled[subscriber] = None

    def resume(self, subscriber: Subscriber) -> None:
        """Its wire can take more again."""
        if subscriber.stalled is not None:
            subscriber.stalled = None
            self._stalled.pop(subscriber, None)
            self.push(subscriber)

    def farewell(self, subscriber: Subscriber, reason: str) -> None:
        """Ends a response although its generation has not, in the dialect's own words. Nothing if it has ended."""
        if not subscriber.ended.done():
            self._tell(subscriber, subscriber.view.dialect.farewell(reason))
        subscriber.end(reason)

    def _tell(self, subscriber: Subscriber, data: bytes) -> None:
        """Something that is not in the log. As with `push`, its peer's trouble is its own."""
        try:
            if data:
                subscriber.wire.write(Slice(data, subscriber.position))
        except Exception:
            subscriber.end("left")

    def _dismiss(self, feed: Feed, reason: str) -> None:
        for subscriber in tuple(self._subscribers.get(feed, ())):
            self.farewell(subscriber, reason)

    # --- holes -------------------------------------------------------------------------------------------

    def _arrived(self, subscriber: Subscriber, page: Sequence[Event], connects: bool) -> None:
        """The page behind its position was read; whether it `connects` to that."""
        if connects:
            self.push(subscriber)
        elif page:
            self._skip(subscriber, page[0].cursor)
        else:
            self.farewell(subscriber, "storage")

    def _skip(self, subscriber: Subscriber, earliest: Cursor) -> None:
        """The log goes on further up: it was trimmed. Who can be told so goes on there."""
        notice = subscriber.view.dialect.gap(subscriber.position, earliest, max(earliest, subscriber.feed.tail))
        if not notice:
            return self.farewell(subscriber, "storage")
        subscriber.position = Cursor(earliest.attempt, earliest.seq - 1)
        self._tell(subscriber, notice)
        return self.push(subscriber)

    # --- time --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Heartbeats, stalled peers, quiet logs, and forgetting; for as long as the process lives."""
        checking: asyncio.Task[None] | None = None
        self._spawn(self._store.redis.topology.watch())
        while True:
            await asyncio.sleep(self._heartbeat / _TICKS)
            self._tick += 1
            self._drop_stalled()
            self._readers.sort()
            for feed in list(self._feeds.values()):
                self._forget_if_empty(feed)
            if checking is None or checking.done():
                checking = self._spawn(self._check_quiet())
            await self._beat_all()

    async def _beat_all(self) -> None:
        """A heartbeat to everybody who has heard nothing for so long; in turns, as a pass is."""
        until = time.monotonic() + TURN_SECONDS
        for members in list(self._subscribers.values()):
            for subscriber in tuple(members):
                if self._tick - subscriber.quiet_since >= _TICKS:
                    self._beat(subscriber)
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + TURN_SECONDS

    def _beat(self, subscriber: Subscriber) -> None:
        wire = subscriber.wire
        subscriber.quiet_since = self._tick
        try:
            if wire.closing or subscriber.ended.done():
                return
            if wire.pending:
                self._stall(subscriber, wire.pending)
            else:
                wire.write(Slice(subscriber.view.dialect.heartbeat, subscriber.position))
        except Exception:
            subscriber.end("left")

    def _drop_stalled(self) -> None:
        now = time.monotonic()
        for subscriber in tuple(self._stalled):
            since, pending = subscriber.stalled or (now, 0)
            if not subscriber.wire.pending:
                self.resume(subscriber)
            elif subscriber.wire.pending < pending:
                subscriber.stalled = (now, subscriber.wire.pending)
            elif now - since > self._send_timeout:
                subscriber.wire.abort()
                subscriber.end("stalled")

    async def drain(self, window: float) -> None:
        """Ends all responses, spread over the window, so that their readers do not come back all at once."""
        self.draining = True
        everybody = self.everybody()
        random.shuffle(everybody)
        started = time.monotonic()
        for number, subscriber in enumerate(everybody, start=1):
            self.farewell(subscriber, "draining")
            # Against the clock: timers know milliseconds, and the pauses of many would be none at all, or too long.
            await asyncio.sleep(started + window * number / len(everybody) - time.monotonic())

    async def close(self) -> None:
        await cancel_and_wait(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_TICKS = 15  # in a heartbeat's time: how exactly silence, and a stall, is measured


def _plain(feed: Feed, part: Slice | None) -> Slice | None:
    """Chunks up to the tail of a log that goes on; anything else is for `push` to look at."""
    plain = part is not None and part.data and not part.opens and part.end == feed.tail and not feed.ended
    return part if plain else None

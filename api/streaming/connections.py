"""Upkeep of the open responses of a hub: heartbeats, stalled peers, expired tokens, drain.

The hub writes events; this module does everything that depends on time. A response that sends no events yet but must
end with the gateway (a completion that is sent as a whole) is a wait, not a subscriber.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from api.keys import AccessEnd
from broker.concurrency.cancellation import cancel_and_wait
from broker.fanout.buffer import Slice
from broker.fanout.dialect import EndReason
from broker.fanout.hub import TICKS, Hub
from broker.fanout.scheduler import SLICE_SECONDS
from broker.fanout.subscriber import Subscriber


class Connections:
    """The open responses of one gateway. `run()` must be running while there are any."""

    def __init__(self, hub: Hub, *, heartbeat: float, send_timeout: float) -> None:
        self.hub = hub
        self.send_timeout = send_timeout
        self._heartbeat = heartbeat
        self._waits: set[asyncio.Future[None]] = set()
        self._by_key: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._removed_keys: set[str] = set()

    def __len__(self) -> int:
        return self.hub.subscribers + len(self._waits)

    @property
    def draining(self) -> bool:
        return self.hub.draining

    async def run(self) -> None:
        """Send heartbeats and drop stalled peers, until cancelled."""
        while True:
            await asyncio.sleep(self._heartbeat / TICKS)
            self._drop_stalled()
            await self._send_heartbeats()

    def expiring(self, subscriber: Subscriber, end: AccessEnd | None) -> AbstractContextManager[None]:
        """Return a context manager that ends a response when its reader's access ends: its token or key expires, or the
        key is removed. None: never, which costs a stream no more than the object."""
        if end is None:
            return nullcontext()
        return _Expiring(self, subscriber, end.key, time.time() if end.key in self._removed_keys else end.at)

    def keep(self, key: str, subscriber: Subscriber) -> None:
        """Remember the response to a reader with this key."""
        self._by_key[key].add(subscriber)

    def forget(self, key: str, subscriber: Subscriber) -> None:
        """Forget a response that has ended."""
        subscribers = self._by_key[key]
        subscribers.discard(subscriber)
        if not subscribers:
            del self._by_key[key]

    def change_keys(self, removed: Collection[str], added: Collection[str]) -> None:
        """End the responses to readers whose keys, given by their hashes, are no longer valid."""
        self._removed_keys = (self._removed_keys - set(added)) | (set(removed) - set(added))
        for key in removed:
            for subscriber in tuple(self._by_key.get(key, ())):
                self.hub.end(subscriber, EndReason.EXPIRED)

    async def wait(self, *until: Coroutine[Any, Any, None], timeout: float | None = None) -> bool:
        """Wait until one of `until` is done, for at most `timeout` seconds. Return whether the drain ended the wait."""
        drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.draining:
            drained.set_result(None)
        tasks = [asyncio.ensure_future(one) for one in until]
        self._waits.add(drained)
        try:
            await asyncio.wait((*tasks, drained), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return drained.done()
        finally:
            self._waits.discard(drained)
            await cancel_and_wait(tasks)

    async def drain(self, window: float) -> None:
        """End all responses, spread over the window, so that their readers do not reconnect all at once."""
        self.hub.draining = True
        ends: list[Callable[[], None]] = [
            partial(self.hub.end, subscriber, EndReason.DRAINING) for subscriber in self.hub.all_subscribers()
        ]
        ends += (partial(_resolve, wait) for wait in self._waits)
        random.shuffle(ends)
        started = time.monotonic()
        for number, end in enumerate(ends, start=1):
            end()
            # Measured against the clock: timers have millisecond resolution, so thousands of pauses would be zero or
            # too long.
            await asyncio.sleep(started + window * number / len(ends) - time.monotonic())

    async def _send_heartbeats(self) -> None:
        """Send a heartbeat to each subscriber without a write for one interval, in slices as in delivery."""
        until = time.monotonic() + SLICE_SECONDS
        for subscriber in self.hub.all_subscribers():
            if self.hub.tick - subscriber.last_write_tick >= TICKS:
                self._send_heartbeat(subscriber)
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_SECONDS

    def _send_heartbeat(self, subscriber: Subscriber) -> None:
        wire = subscriber.wire
        subscriber.last_write_tick = self.hub.tick
        try:
            if wire.closing or subscriber.ended.done():
                return
            if wire.pending:
                self.hub.stall(subscriber, wire.pending)
            else:
                wire.write(Slice(subscriber.buffer.dialect.heartbeat, subscriber.position))
        except Exception:
            subscriber.end(EndReason.LEFT)

    def _drop_stalled(self) -> None:
        now = time.monotonic()
        for subscriber in tuple(self.hub.stalled):
            since, pending = subscriber.stalled or (now, 0)
            if not subscriber.wire.pending:
                self.hub.resume(subscriber)
            elif subscriber.wire.pending < pending:
                subscriber.stalled = (now, subscriber.wire.pending)
            elif now - since > self.send_timeout:
                subscriber.wire.abort()
                subscriber.end(EndReason.STALLED)


def _resolve(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)


class _Expiring:
    """The context of a response whose reader's access ends. An object without a frame: there is one per subscriber."""

    __slots__ = ("_at", "_connections", "_key", "_subscriber", "_timer")

    def __init__(self, connections: Connections, subscriber: Subscriber, key: str, at: float) -> None:
        self._connections = connections
        self._subscriber = subscriber
        self._key = key
        self._at = at
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._at < math.inf:
            delay, end = max(0.0, self._at - time.time()), self._connections.hub.end
            self._timer = asyncio.get_running_loop().call_later(delay, end, self._subscriber, EndReason.EXPIRED)
        if self._key:
            self._connections.keep(self._key, self._subscriber)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._key:
            self._connections.forget(self._key, self._subscriber)

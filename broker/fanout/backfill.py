"""Pages of logs, each read from Redis once for all the subscribers who stand before the same hole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from broker.errors import StorageUnavailable
from broker.events import Event, contiguous
from broker.fanout.buffer import FrameBuffer
from broker.fanout.subscriber import Subscriber
from broker.ids import Cursor
from broker.store.store import PAGE, Store

logger = logging.getLogger("tokencast.pages")


class Backfill:
    """`arrived` is called with each who waited, and with the page: nothing in it where the log could not be read."""

    def __init__(
        self,
        store: Store,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        arrived: Callable[[Subscriber, Sequence[Event], bool], None],
    ) -> None:
        self._store = store
        self._spawn = spawn
        self._arrived = arrived
        self._waiting: dict[tuple[FrameBuffer, Cursor], list[Subscriber]] = {}

    def ask(self, subscriber: Subscriber) -> None:
        """For the page behind its position."""
        key = (subscriber.view, subscriber.position)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(subscriber)
            return
        self._waiting[key] = [subscriber]
        self._spawn(self._read(subscriber.feed.gid, *key))

    async def _read(self, gid: str, view: FrameBuffer, position: Cursor) -> None:
        events: list[Event] = []
        try:
            events = await self._store.page(gid, position, PAGE)
        except StorageUnavailable:
            logger.warning("cannot read %s: Redis is away", gid)
        except Exception:
            logger.exception("cannot read %s", gid)
        known = contiguous(position, events)
        view.insert(position, known)
        for subscriber in self._waiting.pop((view, position), ()):
            self._arrived(subscriber, events, bool(known))

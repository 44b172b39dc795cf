"""Reads missing pages of logs from Redis, once for all subscribers that wait at the same position."""

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

logger = logging.getLogger("tokencast.backfill")


class Backfill:
    """Reads the page after a position and calls `on_page` for each subscriber that waits for it, with the events (none
    if the log could not be read) and whether they follow the position without a gap."""

    def __init__(
        self,
        store: Store,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_page: Callable[[Subscriber, Sequence[Event], bool], None],
    ) -> None:
        self._store = store
        self._spawn = spawn
        self._on_page = on_page
        self._waiting: dict[tuple[FrameBuffer, Cursor], list[Subscriber]] = {}

    def request(self, subscriber: Subscriber) -> None:
        """Request the page after the subscriber's position."""
        key = (subscriber.buffer, subscriber.position)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(subscriber)
            return
        self._waiting[key] = [subscriber]
        self._spawn(self._read(subscriber.feed.gid, *key))

    async def _read(self, gid: str, buffer: FrameBuffer, position: Cursor) -> None:
        events: list[Event] = []
        try:
            events = await self._store.page(gid, position, PAGE)
        except StorageUnavailable:
            logger.warning("cannot read %s: Redis is unavailable", gid)
        except Exception:
            logger.exception("cannot read %s", gid)
        known = contiguous(position, events)
        buffer.insert(position, known)
        for subscriber in self._waiting.pop((buffer, position), ()):
            self._on_page(subscriber, events, bool(known))

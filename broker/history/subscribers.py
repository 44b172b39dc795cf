"""The subscribers of a generation at all gateways. Each gateway knows only its own: it tells them while somebody asks.

A question is a mark in the queue's Redis. Gateways look for marks every two seconds, and those that have subscribers of
the generation write them there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from broker.errors import StorageUnavailable
from broker.history.records import GatewaySubscribers, SubscriberList, SubscriberRecord
from broker.redis.client import Redis, RedisError
from broker.redis.clock import RedisClock
from broker.store import keys

PERIOD = 2.0  # seconds between two looks for questions
ASKED_FOR = 10.0  # seconds for which a question is answered, and an answer counts
LISTED = 100
"""Maximum number of subscribers of a gateway that are listed, and of generations that it tells about."""
log = logging.getLogger("tokencast.subscribers")


class SubscriberReports:
    """The part of one gateway."""

    def __init__(self, redis: Redis, clock: RedisClock, local: Callable[[str], Sequence[SubscriberRecord]]) -> None:
        """`local`: returns the subscribers of a generation at this gateway."""
        self.gateway = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._redis = redis
        self._clock = clock
        self._local = local

    async def run(self) -> None:
        """Answer questions until cancelled; survives every error."""
        while True:
            await asyncio.sleep(PERIOD * random.uniform(0.8, 1))
            try:
                await self.answer()
            except (StorageUnavailable, RedisError):
                log.debug("the questions cannot be read")
            except Exception:
                log.exception("subscribers could not be told")

    async def answer(self) -> None:
        """Tell about the generations that somebody asks about. Raises StorageUnavailable."""
        now = await self._clock.now()
        since = int((now - ASKED_FOR) * 1000)
        asked = await self._redis.execute("ZRANGEBYSCORE", keys.ASKED, since, "+inf", "LIMIT", 0, LISTED)
        commands: list[Sequence[Any]] = []
        for name in asked:
            gid = name.decode()
            if found := self._local(gid):
                commands.append(("HSET", keys.subscribers(gid), self.gateway, self._encoded(found, now)))
                commands.append(("EXPIRE", keys.subscribers(gid), 60))
            else:
                commands.append(("HDEL", keys.subscribers(gid), self.gateway))
        await self._redis.pipeline(commands)

    def _encoded(self, found: Sequence[SubscriberRecord], now: float) -> bytes:
        return msgspec.json.encode(_Answer(now, len(found), _most_delayed(found)))

    async def of(self, gid: str) -> SubscriberList:
        """Return the subscribers here, and those at other gateways as they told them last: the first question after a
        while is answered only by this gateway."""
        now, own = await self._clock.now(), self._local(gid)
        gateways = [GatewaySubscribers(self.gateway, len(own), now)]
        data = _most_delayed(own)
        with suppress(StorageUnavailable):
            for name, answer in await self._others(gid, now):
                gateways.append(GatewaySubscribers(name, answer.count, answer.at))
                data += answer.data
        return SubscriberList(_most_delayed(data, len(data)), gateways)

    async def _others(self, gid: str, now: float) -> list[tuple[str, _Answer]]:
        now_ms = int(now * 1000)
        *_, flat = await self._redis.pipeline(
            [
                ("ZADD", keys.ASKED, now_ms, gid),
                ("ZREMRANGEBYSCORE", keys.ASKED, "-inf", now_ms - 60_000),
                ("EXPIRE", keys.ASKED, 60),
                ("HGETALL", keys.subscribers(gid)),
            ]
        )
        found = [
            (name.decode(), msgspec.json.decode(text, type=_Answer))
            for name, text in zip(flat[::2], flat[1::2], strict=True)
        ]
        return [(name, one) for name, one in found if name != self.gateway and one.at > now - ASKED_FOR]


class _Answer(msgspec.Struct):
    at: float
    count: int
    data: list[SubscriberRecord]


def _most_delayed(found: Sequence[SubscriberRecord], most: int = LISTED) -> list[SubscriberRecord]:
    return sorted(found, key=lambda one: (-one.lag_events, -one.unread_bytes, one.since))[:most]

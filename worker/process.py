"""A worker's life: wait for Redis, run until told to stop, let the generations end, hand over the rest."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from broker.connection import Redis, connect_redis, without_password
from broker.errors import Misconfigured, StorageUnavailable
from broker.queue import Queue
from broker.reaper import Reaper
from broker.settings import SIMULATED_KEY, Settings
from worker.appender import Appender
from worker.generate import Generator
from worker.main import Picker
from worker.presence import Presence
from worker.running import Running
from worker.upstream import Upstreams

FAREWELL = 2.0  # seconds for the presence keys, where Redis is away
log = logging.getLogger("tokencast.worker")


class Signals:
    """SIGTERM and SIGINT: the first asks to stop, the second not to wait."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


def check_upstreams(settings: Settings) -> None:
    """Misconfigured where no upstream has a key; says so where one has none, or is simulated."""
    upstreams = settings.all_upstreams()
    missing = sorted({upstream.api_key_env for upstream in upstreams if not upstream.api_key})
    if all(upstream.api_key_env in missing for upstream in upstreams):
        raise Misconfigured(
            f"{' and '.join(missing)} is not set: the worker needs the upstream's key. "
            "`tokencast dev` runs without one, on a simulated upstream."
        )
    for upstream in upstreams:
        if not upstream.api_key:
            log.warning("upstream %s cannot be used: %s is not set", upstream.name, upstream.api_key_env)
        elif upstream.api_key == SIMULATED_KEY:
            log.warning("upstream %s at %s is SIMULATED: no model is called", upstream.name, upstream.base_url)


async def run(settings: Settings) -> int:
    """The exit code: 0 after a stop that was asked for."""
    signals = Signals()
    async with (
        connect_redis(settings.logs_url, max_connections=settings.slots + 32) as store,
        connect_redis(settings.redis_url) as queue_redis,
    ):
        if not await _before(signals.stop, _answers(store), _answers(queue_redis)):
            return 0
        async with Upstreams(settings) as upstreams:
            return await _work(settings, signals, store, queue_redis, upstreams)


async def _work(
    settings: Settings, signals: Signals, store: Redis, queue_redis: Redis, upstreams: Upstreams
) -> int:
    queue = Queue(queue_redis, settings.retention)
    appender = Appender(settings)
    generator = Generator(store, appender, upstreams, settings)
    running = Running(generator, store, queue, settings.slots)
    picker = Picker(store, running, appender, settings)
    presence = Presence(queue_redis, running)
    reaper = Reaper(store, queue, settings)
    async with _beside(appender.run(), presence.run(), reaper.run(), picker.run()) as parts:
        log.info("worker %s: %d slots", presence.id, settings.slots)
        broken = not await _before(signals.stop, parts, ended=True)
        await picker.stop()
        if not broken:
            await _drain(running, signals.hurry, settings.worker_drain)
        await running.hand_over()
        await _say_farewell(presence)
    return 1 if broken else 0

"""A worker's life: wait for Redis, run until told to stop, let the generations end, hand over the rest."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable
from contextlib import suppress

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import Misconfigured, StorageUnavailable
from broker.queue.quotas import TenantLimits
from broker.queue.reaper import Reaper
from broker.queue.tickets import Queue
from broker.redis.client import Redis, connect_both
from broker.settings.settings import SIMULATED_KEY, Settings
from broker.store.preflight import Preflight
from worker.appender import Appender
from worker.consumer import Consumer
from worker.generate import GenerationRunner
from worker.monitoring.heartbeat import Heartbeat
from worker.monitoring.metrics import WorkerMetrics
from worker.slots import Slots
from worker.upstream.client import check_client
from worker.upstream.models import ModelLists
from worker.upstream.stream import Upstreams

FAREWELL = 2.0  # seconds for the presence keys, where Redis is away
log = logging.getLogger("tokencast.worker")


def check_upstreams(settings: Settings) -> None:
    """Misconfigured if no upstream can be asked; warns of one that cannot, has no key, or is simulated."""
    upstreams = settings.all_upstreams()
    if not any(upstream.usable for upstream in upstreams):
        missing = sorted({name for upstream in upstreams for name in upstream.missing})
        raise Misconfigured(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set: the worker needs the upstream's "
            "key. `tokencast dev` runs without one, on a simulated upstream."
        )
    check_client(upstreams)
    for upstream in upstreams:
        if not upstream.usable:
            log.warning("upstream %s cannot be used: %s is not set", upstream.name, " and ".join(upstream.missing))
        elif not upstream.api_key and upstream.api_key_env:
            log.warning(
                "upstream %s at %s is asked without a key: %s is not set",
                upstream.name,
                upstream.base_url,
                upstream.api_key_env,
            )
        elif upstream.api_key == SIMULATED_KEY:
            log.warning("upstream %s at %s is SIMULATED: no model is called", upstream.name, upstream.base_url)


async def run(settings: Settings) -> int:
    """The exit code: 0 after a stop that was asked for."""
    stop, hurry = _signals()
    connecting = connect_both(settings.logs_url, settings.redis_url, max_connections=settings.slots + 32)
    async with connecting as (store, queue):
        watch = Preflight(store, queue, settings, log)
        await _first(stop.wait(), watch.wait_until_accepted())
        if stop.is_set():
            return 0
        async with Upstreams(settings) as upstreams:
            return await _work(
                settings,
                (stop, hurry),
                store,
                Queue(queue, settings.retention, TenantLimits.of(settings)),
                upstreams,
                watch,
            )


async def _work(
    settings: Settings,
    signals: tuple[asyncio.Event, asyncio.Event],
    store: Redis,
    queue: Queue,
    upstreams: Upstreams,
    watch: Preflight,
) -> int:
    stop, hurry = signals
    appender = Appender(settings, store.topology)
    generator = GenerationRunner(store, appender, upstreams, settings)
    running = Slots(generator, store, queue, settings.slots)
    reaper = Reaper(store, queue, settings)
    picker = Consumer(store, running, appender, settings, reaper.note_exhausted)
    presence = Heartbeat(queue.redis, running)

    def not_ready() -> str | None:
        if stop.is_set():
            return "stopping"
        return watch.unusable_reason if appender.connected else "the logs' Redis is away"

    servers = {"logs": store, "queue": queue.redis}
    metrics = WorkerMetrics(generator.tally, appender, running, reaper, servers, not_ready)
    parts = [
        asyncio.create_task(part)
        for part in (
            appender.run(),
            presence.run(),
            running.places.run(),
            reaper.run(),
            ModelLists(queue.redis, upstreams).run(),
            picker.run(),
            watch.run(),
            metrics.run(settings),
        )
    ]
    try:
        await _first(stop.wait(), asyncio.gather(appender.ready(), presence.there.wait()))
        log.info("worker %s ready: %d slots", presence.id, settings.slots)
        await _first(stop.wait(), asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED))
        await picker.stop()
        if stop.is_set():
            log.info("stopping: %d generations run, for at most %g s", len(running), settings.worker_drain)
            await _first(hurry.wait(), running.drained(), asyncio.sleep(settings.worker_drain))
        await running.hand_over()
        await _farewell(presence)
    finally:
        ends = await cancel_and_wait(parts)
    for error in ends:
        if isinstance(error, Misconfigured):
            raise error
        if isinstance(error, Exception):
            log.error("a part of the worker failed", exc_info=error)
    log.info("stopped")
    return 0 if stop.is_set() else 1


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """SIGTERM and SIGINT: the first asks to stop, the second not to wait."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def received() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)
    return stop, hurry


async def _first(*works: Awaitable[object]) -> None:
    """Until one of them is done, and raises what it raised; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_and_wait(tasks)


async def _farewell(presence: Heartbeat) -> None:
    with suppress(StorageUnavailable, TimeoutError):
        async with asyncio.timeout(FAREWELL):
            await presence.remove()

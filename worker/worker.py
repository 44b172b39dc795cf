"""A worker's life cycle: wait for Redis, serve until a signal, drain the running generations, hand over the rest."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Collection, Coroutine
from contextlib import suppress
from typing import Any

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import Misconfigured, StorageUnavailable
from broker.history.recorder import History
from broker.queue.old_queue import OldQueue
from broker.queue.quotas import TenantLimits
from broker.queue.reaper import Reaper
from broker.queue.tickets import Queue
from broker.redis.client import Redis, connect_both
from broker.settings.inspection.processes import check_usable
from broker.settings.settings import SIMULATED_KEY, Settings
from broker.store.preflight import Preflight
from broker.webhooks.delivery import WebhookDelivery
from broker.webhooks.outbox import Outbox
from worker.appender import Appender
from worker.consumer import Consumer
from worker.generate import GenerationRunner
from worker.hand_back import HandBack
from worker.monitoring.heartbeat import Heartbeat, worker_id
from worker.monitoring.metrics import WorkerMetrics
from worker.places import Places
from worker.slots import Slots
from worker.upstream.client import check_client
from worker.upstream.models import ModelLists
from worker.upstream.stream import Upstreams

UNREGISTER_TIMEOUT = 2.0  # seconds for removing the heartbeat's keys, if Redis is unreachable
log = logging.getLogger("tokencast.worker")


def check_upstreams(settings: Settings) -> None:
    """Raise Misconfigured if no upstream is usable; warn of one that is unusable or simulated."""
    upstreams = settings.all_upstreams()
    check_usable(settings)
    check_client(upstreams)
    for upstream in upstreams:
        if not upstream.usable:
            log.warning("upstream %s cannot be used: %s is not set", upstream.name, " and ".join(upstream.missing))
        elif not upstream.api_key and upstream.api_key_env:
            log.info("upstream %s at %s is called without a key", upstream.name, upstream.base_url)
        elif upstream.api_key == SIMULATED_KEY:
            log.warning("upstream %s at %s is SIMULATED: no real model is called", upstream.name, upstream.base_url)


async def run(settings: Settings) -> int:
    """Run a worker and return its exit code: 0 after a requested stop."""
    signals = Signals()
    connecting = connect_both(settings.logs_url, settings.redis_url, max_connections=settings.slots + 32)
    async with connecting as (logs, queue):
        preflight = Preflight(logs, queue, settings, log)
        await _first(signals.stop.wait(), preflight.wait_until_accepted())
        if signals.stop.is_set():
            return 0
        async with Upstreams(settings) as upstreams:
            return await Worker(settings, signals, logs, queue, upstreams, preflight).run()


class Signals:
    """Events of SIGTERM and SIGINT: the first signal sets `stop`, as an operator may have done, the second `force`,
    which ends the drain."""

    def __init__(self) -> None:
        self.stop, self.force = asyncio.Event(), asyncio.Event()
        self._received = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive)

    def _receive(self) -> None:
        (self.force if self._received else self.stop).set()
        self._received = True


class Worker:
    """The components of a worker and its phases: startup → serve → drain → hand over."""

    def __init__(
        self,
        settings: Settings,
        signals: Signals,
        logs: Redis,
        queue: Redis,
        upstreams: Upstreams,
        preflight: Preflight,
    ) -> None:
        self._settings = settings
        self._signals = signals
        self._preflight = preflight
        limits, name = TenantLimits.of(settings), worker_id()
        tickets = Queue(queue, limits)
        self._appender = Appender(settings, logs.topology)
        places = Places(queue, limits, name)
        hand_back = HandBack(logs, tickets, places)
        history = self._history = History(queue, logs, lease=settings.lease)
        runner = GenerationRunner(logs, self._appender, upstreams, places, hand_back, settings, history)
        history.collect, history.samples = runner.counters.count_tokens, True
        self._slots = Slots(runner, places, hand_back, settings.slots)
        self._reaper = Reaper(logs, tickets, settings, history=history)
        self._old_queue = OldQueue(logs, tickets, settings, signals.stop.is_set)
        reaper = self._reaper
        self._consumer = Consumer(
            logs, tickets, self._slots, self._appender, settings, reaper.note_exhausted, reaper.note_expired
        )
        self._heartbeat = Heartbeat(
            *(queue, self._slots, name),
            lease=settings.lease,
            upstreams=[one.name for one in settings.all_upstreams() if one.usable],
            is_draining=signals.stop.is_set,
            on_drain=signals.stop.set,
        )
        self._model_lists = ModelLists(queue, upstreams)
        self._webhooks = WebhookDelivery(Outbox(logs), settings)
        servers = {"logs": logs, "queue": queue}
        self._metrics = WorkerMetrics(
            runner.counters, self._appender, self._slots, self._reaper, self._webhooks, servers, self._not_ready
        )

    async def run(self) -> int:
        """Run until a signal, or until a component fails; return the exit code."""
        components = [asyncio.create_task(component) for component in self._components()]
        try:
            await self._start()
            await self._serve(components)
            await self._drain()
            await self._hand_over()
        finally:
            results = await cancel_and_wait(components)
        _report_failures(results)
        log.info("stopped")
        return 0 if self._signals.stop.is_set() else 1

    def _components(self) -> list[Coroutine[Any, Any, None]]:
        """Return the parts that run until they are cancelled."""
        return [
            self._appender.run(),
            self._heartbeat.run(),
            self._history.run(),
            self._slots.places.run(),
            self._reaper.run(),
            self._old_queue.run(),
            self._model_lists.run(),
            self._webhooks.run(),
            self._consumer.run(),
            self._preflight.run(),
            self._metrics.run(self._settings),
        ]

    async def _start(self) -> None:
        """Wait until both Redis servers are connected, or for a signal."""
        ready = asyncio.gather(self._appender.ready(), self._heartbeat.registered.wait())
        await _first(self._signals.stop.wait(), ready)
        log.info("worker %s ready: %d slots", self._heartbeat.id, self._settings.slots)

    async def _serve(self, components: Collection[asyncio.Task[None]]) -> None:
        """Run generations until a signal, or until a component fails; then stop taking tickets."""
        await _first(self._signals.stop.wait(), asyncio.wait(components, return_when=asyncio.FIRST_COMPLETED))
        self._heartbeat.refresh_soon()
        await self._consumer.stop()

    async def _drain(self) -> None:
        """After a signal, wait until the generations have ended, for the drain time, or for a second signal."""
        if self._signals.stop.is_set():
            limit = self._settings.worker_drain
            log.info("stopping: %d generations are running, waiting up to %g s", len(self._slots), limit)
            await _first(self._signals.force.wait(), self._slots.wait_empty(), asyncio.sleep(limit))

    async def _hand_over(self) -> None:
        """Put the generations that still run back into the queue, and unregister the worker."""
        await self._slots.hand_over()
        await self._webhooks.close()
        await self._history.close()
        with suppress(StorageUnavailable, TimeoutError):
            async with asyncio.timeout(UNREGISTER_TIMEOUT):
                await self._heartbeat.unregister()

    def _not_ready(self) -> str | None:
        """Return the reason why the worker accepts no generations, None if it does."""
        if self._signals.stop.is_set():
            return "stopping"
        return self._preflight.unusable_reason if self._appender.connected else "the logs' Redis is unreachable"


def _report_failures(results: list[Any]) -> None:
    """Log the exceptions of components. Raises Misconfigured if one of them did."""
    for error in results:
        if isinstance(error, Misconfigured):
            raise error
        if isinstance(error, Exception):
            log.error("a component of the worker failed", exc_info=error)


async def _first(*works: Awaitable[object]) -> None:
    """Wait until one of them is done and re-raise its exception; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_and_wait(tasks)

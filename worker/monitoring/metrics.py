"""A worker's HTTP server for monitoring: `/metrics`, `/healthz`, `/readyz` on TOKENCAST_METRICS_PORT."""

from __future__ import annotations

import logging
from collections.abc import Callable

from aiohttp import web

from broker.queue.reaper import Reaper
from broker.redis.client import Redis
from broker.runtime.counters import ENDED, REDIS
from broker.runtime.prometheus import Exposition, Families
from broker.runtime.sockets import bound_socket, shown
from broker.settings.settings import Settings
from broker.webhooks.delivery import WebhookDelivery
from worker.appender import Appender
from worker.counters import WorkerCounters
from worker.slots import Slots

log = logging.getLogger("tokencast.worker")
_BY_MODEL = ("upstream", "model")


class WorkerMetrics:
    """Serves metrics and probes. `not_ready`: returns the reason why the worker accepts no generations, or None."""

    def __init__(
        self,
        counters: WorkerCounters,
        appender: Appender,
        slots: Slots,
        reaper: Reaper,
        webhooks: WebhookDelivery,
        servers: dict[str, Redis],
        not_ready: Callable[[], str | None],
    ) -> None:
        self._counters = counters
        self._appender = appender
        self._slots = slots
        self._reaper = reaper
        self._webhooks = webhooks
        self._servers = servers
        self._not_ready = not_ready
        self._exposition = Exposition(self._collect)

    async def run(self, settings: Settings) -> None:
        """Serve until cancelled. Raises Misconfigured if the port is in use."""
        if not settings.metrics_port:
            return await self._exposition.run()
        app = web.Application()
        app.add_routes(
            [web.get("/metrics", self._metrics), web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await _listen(runner, settings)
            await self._exposition.run()
        finally:
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._exposition.answer(request.headers.get("accept", ""), Families())
        return web.Response(body=body, headers={"content-type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._not_ready()
        if reason is None:
            return web.json_response({"status": "ok"})
        return web.json_response({"status": "unavailable", "reason": reason}, status=503)

    def _collect(self, families: Families) -> None:
        self._counters.update()
        self._collect_generations(families)
        self._collect_upstream(families)
        self._webhooks.collect(families)
        latencies = {(name,): redis.latency for name, redis in self._servers.items()}
        families.histogram("tokencast_redis_seconds", REDIS, latencies, ("server",))
        families.histogram(
            "tokencast_append_seconds",
            "Duration of append pipelines to the logs' Redis.",
            {(): self._appender.flushes},
        )
        ready = self._not_ready() is None
        families.gauge("tokencast_worker_ready", "1 while the worker accepts generations.", {(): ready})

    def _collect_generations(self, families: Families) -> None:
        counters, slots = self._counters, self._slots
        families.gauge("tokencast_worker_slots", "Maximum number of running generations.", {(): slots.capacity})
        families.gauge("tokencast_worker_running", "Number of running generations.", {(): len(slots)})
        families.histogram(
            "tokencast_queue_wait_seconds",
            "Time from a generation's creation, or the time it is scheduled for, to the call that its upstream "
            "accepted, by its last reason to wait; queued if none was noted.",
            counters.queue_waits, ("reason",),
        )  # fmt: skip
        families.counter("tokencast_attempts", "Attempts started.", counters.attempts, _BY_MODEL)
        families.counter(
            "tokencast_resets", "Attempts that started a generation again, by reason.", counters.resets, ("reason",)
        )
        ended = {
            **counters.ended,
            ("", "", "failed", "attempts_exhausted"): self._reaper.failed,
            ("", "", "failed", "queue_timeout"): self._reaper.expired,
        }
        families.counter("tokencast_generations_ended", ENDED, ended, (*_BY_MODEL, "status", "code"))
        families.histogram(
            "tokencast_attempt_seconds", "Time from the claim to the terminal event, for attempts that wrote one.",
            counters.attempt_seconds, _BY_MODEL,
        )  # fmt: skip

    def _collect_upstream(self, families: Families) -> None:
        counters = self._counters
        families.counter(
            "tokencast_upstream_retries", "Calls after which the generation went back to the queue, by error code.",
            counters.retries, ("upstream", "code"),
        )  # fmt: skip
        families.counter(
            "tokencast_upstream_continuations", "Calls that went on after the text of a call that broke off.",
            counters.continuations, _BY_MODEL,
        )  # fmt: skip
        families.histogram(
            "tokencast_upstream_first_token_seconds", "Time from the upstream call to its first token.",
            counters.first_tokens, _BY_MODEL,
        )  # fmt: skip
        families.histogram(
            "tokencast_upstream_token_gap_seconds", "Time between two tokens as received from the upstream.",
            counters.gaps, _BY_MODEL,
        )  # fmt: skip
        families.counter("tokencast_upstream_bytes", "Bytes of received chunks.", counters.bytes, _BY_MODEL)
        families.counter(
            "tokencast_tokens", "Tokens of ended generations, from their usage.", counters.tokens, (*_BY_MODEL, "kind")
        )


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    """Listen on the same addresses as the gateway's port. aiohttp's own listener would treat `::` as IPv6 only."""
    host, port = settings.host, settings.metrics_port
    await web.SockSite(runner, bound_socket(host, port, "HOST and TOKENCAST_METRICS_PORT")).start()
    log.info("metrics on http://%s:%d/metrics", shown(host), port)

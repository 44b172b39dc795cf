"""`/metrics` of a gateway: subscribers, requests, Redis and the queue.

It needs no key, as is usual, so it contains nothing secret and nothing of a single tenant: labels are names of routes,
dialects, errors, and models, which are bounded (`ModelLabels`). A public gateway hides it at the proxy, as
docs/nginx.conf does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence, Sized
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.ops.redis_memory import Memory, RedisMemory
from broker.broker import Broker
from broker.errors import StorageUnavailable
from broker.queue.reaper import Reaper
from broker.records import Circuit, UpstreamRecord
from broker.redis.commands import Redis
from broker.runtime.counters import ENDED, REDIS, WAITS, Count, Histogram, Labels
from broker.runtime.prometheus import Exposition, Families
from broker.waiting.reasons import Level
from broker.webhooks.delivery import WebhookDelivery

REDIS_TIMEOUT = 1.0  # maximum seconds that a scrape waits for Redis
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})


class Requests:
    """Counts HTTP requests by route and status, and measures their response times."""

    def __init__(self) -> None:
        self.answered = Count()
        self.waits = Histogram(WAITS)

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `seconds` passed until the first byte of its response."""
        self.answered[(method if method in _METHODS else "other", route, str(status))] += 1
        self.waits[(route,)].observe(seconds)


class GatewayMetrics:
    """The handler of `/metrics`; `run` must run in the background."""

    def __init__(self, broker: Broker, reaper: Reaper, webhooks: WebhookDelivery, dialects: Sequence[str]) -> None:
        self._broker = broker
        self._reaper = reaper
        self._webhooks = webhooks
        self._dialects = dialects  # that are shown from the start
        self.requests = Requests()
        self._memory = RedisMemory(self._servers())
        self.connections: Sized = ()
        self._exposition = Exposition(self._collect, broker.settings.metrics_dir)

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.answer)]

    async def run(self) -> None:
        await self._exposition.run()

    async def answer(self, request: Request) -> Response:
        shared = Families()
        await self._collect_shared(shared)
        body, content_type = self._exposition.answer(request.headers.get("accept", ""), shared)
        return Response(body, headers={"content-type": content_type})

    def _collect(self, families: Families) -> None:
        self._collect_readers(families)
        self._collect_callers(families)
        self._webhooks.collect(families)
        self._collect_redis(families)

    def _collect_readers(self, families: Families) -> None:
        hub = self._broker.hub
        subscribers = hub.all_subscribers()
        present = Count(dict.fromkeys(((name,) for name in self._dialects), 0))
        stalled = behind = most = 0
        for subscriber in subscribers:
            present[(subscriber.dialect,)] += 1
            hub.delivered[(subscriber.dialect,)] += subscriber.take_event_count()
            stalled += subscriber.stalled is not None
            lag = subscriber.lag
            behind += lag > 0
            most = max(most, lag)
        followed = len({subscriber.feed for subscriber in subscribers})
        one, timings, dialect = (), hub.timings, ("dialect",)
        families.gauge("tokencast_subscribers", "Open streams of generations.", present, dialect)
        families.gauge("tokencast_subscribers_stalled", "Open streams whose peer does not read.", {one: stalled})
        families.gauge("tokencast_subscribers_behind", "Open streams that are behind the log.", {one: behind})
        families.gauge(
            "tokencast_subscriber_lag_events", "Events that the most delayed stream is behind the log.", {one: most}
        )
        families.counter(
            "tokencast_subscriptions_ended",
            "Ended streams by reason: ended = the generation ended, left = the reader left, stalled = it did not read.",
            hub.ended,
            ("reason",),
        )
        families.counter(
            "tokencast_events_delivered", "Events delivered, counted once per subscriber.", hub.delivered, dialect
        )
        families.gauge(
            "tokencast_generations_followed",
            "Generations with at least one subscriber at this gateway.",
            {one: followed},
        )
        families.counter(
            "tokencast_passes",
            "Delivery passes, each of which writes new events to subscribers.",
            {one: timings.passes},
        )
        families.histogram(
            "tokencast_token_gap_seconds",
            "Time between two events of a generation, as readers see it.",
            {one: timings.gaps()},
        )
        families.histogram(
            "tokencast_first_token_seconds",
            "Time from the creation of a generation until its first chunk is written to readers.",
            {one: timings.first_tokens},
        )
        families.histogram(
            "tokencast_delivery_seconds",
            "Time from the arrival of an event at the worker until it is written to the last reader at this gateway.",
            {one: timings.delays},
        )
        families.gauge("tokencast_cache_bytes", "Size of the cache of framed events.", {one: hub.cache.bytes})
        families.gauge("tokencast_draining", "1 while the gateway drains, else 0.", {one: hub.draining})

    def _collect_callers(self, families: Families) -> None:
        broker, route = self._broker, ("route",)
        families.counter(
            "tokencast_generations_created",
            "Accepted generations, by configured upstream and model.",
            broker.created,
            ("upstream", "model"),
        )
        ended = {
            **broker.ended,
            ("", "", "failed", "attempts_exhausted"): self._reaper.failed,
            ("", "", "failed", "queue_timeout"): self._reaper.expired + broker.expired,
        }
        families.counter("tokencast_generations_ended", ENDED, ended, ("upstream", "model", "status", "code"))
        requests = self.requests
        families.counter(
            "tokencast_http_requests",
            "HTTP requests, by method, route and status.",
            requests.answered,
            ("method", *route, "status"),
        )
        families.histogram(
            "tokencast_http_response_seconds",
            "Time from the head of a request to the head of its response.",
            requests.waits,
            route,
        )
        families.gauge("tokencast_http_connections", "Open HTTP connections.", {(): len(self.connections)})

    def _collect_redis(self, families: Families) -> None:
        latencies = {(name,): redis.latency for name, redis in self._servers()}
        families.histogram("tokencast_redis_seconds", REDIS, latencies, ("server",))

    def _servers(self) -> list[tuple[str, Redis]]:
        return [("logs", self._broker.store.redis), ("queue", self._broker.queue.redis)]

    async def _collect_shared(self, families: Families) -> None:
        """Collect metrics of the whole fleet, the same at every gateway. Without Redis, only that it is down."""
        pings = await asyncio.gather(*(_ping(redis) for _, redis in self._servers()))
        names = [(name,) for name, _ in self._servers()]
        families.gauge(
            "tokencast_redis_up",
            "1 if Redis answered a PING, else 0.",
            dict(zip(names, map(float, map(bool, pings)), strict=True)),
            ("server",),
        )
        families.gauge(
            "tokencast_redis_ping_seconds",
            "Round-trip time of a PING during this scrape.",
            {name: ping for name, ping in zip(names, pings, strict=True) if ping},
            ("server",),
        )
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                waiting = await self._broker.queue.queue_depth()
                fleet = await self._broker.queue.workers()
                webhooks = await self._broker.outbox.waiting()
                levels, scheduled = await self._broker.waiting.levels()
                upstreams = await self._broker.upstreams()
                memory = await self._memory.read()
        except (StorageUnavailable, TimeoutError):
            return
        families.gauge("tokencast_queue_depth", "Waiting generations, with scheduled ones.", {(): waiting.depth})
        waited = waiting.longest_wait(self._broker.store.clock.estimate())
        families.gauge(
            "tokencast_queue_oldest_seconds", "Waiting time of the first generation in the queue.", {(): waited}
        )
        _collect_levels(families, levels, scheduled)
        _collect_memory(families, memory)
        _collect_upstreams(families, upstreams)
        families.gauge("tokencast_webhooks_waiting", "Webhooks that have not been delivered.", {(): webhooks})
        families.gauge("tokencast_workers", "Live workers.", {(): len(fleet)})
        families.gauge(
            "tokencast_slots",
            "Slots of all workers: generations that they can run at a time.",
            {(): sum(w.slots for w in fleet)},
        )
        families.gauge("tokencast_slots_busy", "Busy slots of all workers.", {(): sum(w.running for w in fleet)})


def _collect_levels(families: Families, levels: Sequence[Level], scheduled: int) -> None:
    waiting = Count(dict.fromkeys(((str(priority), "queued") for priority in range(1, 6)), 0))
    for level in levels:
        waiting[(str(level.priority), level.reason)] += level.waiting
    families.gauge(
        "tokencast_queue_waiting",
        "Waiting generations without the scheduled ones, by priority and reason.",
        waiting,
        ("priority", "reason"),
    )
    families.gauge("tokencast_queue_scheduled", "Generations that must not run yet.", {(): scheduled})


def _collect_memory(families: Families, memory: Mapping[str, Memory]) -> None:
    families.gauge(
        "tokencast_redis_memory_bytes",
        "Used memory of Redis; of a cluster, that of its fullest server.",
        {(name,): each.used for name, each in memory.items()},
        ("server",),
    )
    families.gauge(
        "tokencast_redis_memory_limit_bytes",
        "maxmemory of Redis, at which it refuses writes; 0 = none.",
        {(name,): each.limit for name, each in memory.items()},
        ("server",),
    )


def _collect_upstreams(families: Families, upstreams: Sequence[UpstreamRecord]) -> None:
    label = ("upstream",)

    def by_name(field: str) -> dict[Labels, float]:
        return {(one.name,): float(getattr(one, field) or 0) for one in upstreams}

    families.gauge("tokencast_upstream_in_flight", "Calls under way, of all workers.", by_name("in_flight"), label)
    families.gauge("tokencast_upstream_waiting", "Generations that wait for it.", by_name("waiting"), label)
    families.gauge("tokencast_upstream_limit", "Limit of calls at once; 0 = none.", by_name("max_concurrency"), label)
    families.gauge(
        "tokencast_upstream_learned_limit",
        "Calls at once that it is known to take; 0 = any number.",
        by_name("learned_concurrency"),
        label,
    )
    families.counter("tokencast_upstream_refused", "Calls that it refused (429, 503).", by_name("refused"), label)
    families.gauge("tokencast_upstream_paused", "1 while it is paused.", by_name("paused"), label)
    circuits = {(one.name, state): float(one.circuit == state) for one in upstreams for state in get_args(Circuit)}
    families.gauge("tokencast_upstream_circuit", "1 for the state of its circuit.", circuits, (*label, "state"))


async def _ping(redis: Redis) -> float | None:
    """Return the round-trip time in seconds; None if Redis does not answer."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(REDIS_TIMEOUT):
            return None if await redis.unavailable_reason() else time.monotonic() - began
    except TimeoutError:
        return None

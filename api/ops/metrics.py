"""`/metrics` of a gateway: what its readers see, what its callers get, and what the queue looks like.

Open, as is usual, so nothing in it is secret or a tenant's: labels are names of routes, dialects, errors, and of models
as the settings spell them. Whoever serves the public keeps it behind the proxy (docs/nginx.conf does).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sized

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.broker import Broker
from broker.errors import StorageUnavailable
from broker.queue.reaper import Reaper
from broker.redis.commands import Redis
from broker.runtime.counters import ENDED, REDIS, WAITS, Count, Histogram
from broker.runtime.prometheus import Exposition, Families

REDIS_WITHIN = 1.0  # seconds that a scrape waits for Redis
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})


class Requests:
    """What came in over HTTP, by route, and what was answered."""

    def __init__(self) -> None:
        self.answered = Count()
        self.waits = Histogram(WAITS)

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """`seconds` to the answer's first byte."""
        self.answered[(method if method in _METHODS else "other", route, str(status))] += 1
        self.waits[(route,)].observe(seconds)


class GatewayMetrics:
    """The handler of `/metrics`; `run` beside it for ever."""

    def __init__(self, broker: Broker, reaper: Reaper) -> None:
        self._broker = broker
        self._reaper = reaper
        self.requests = Requests()
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
        self._collect_redis(families)

    def _collect_readers(self, families: Families) -> None:
        hub = self._broker.hub
        everybody = hub.all_subscribers()
        present = Count({("native",): 0, ("chat",): 0})
        stalled = behind = most = 0
        for subscriber in everybody:
            present[(subscriber.dialect,)] += 1
            hub.delivered[(subscriber.dialect,)] += subscriber.take_event_count()
            stalled += subscriber.stalled is not None
            tail, position = subscriber.feed.tail, subscriber.position
            lag = tail.seq - position.seq if tail.attempt == position.attempt else tail.seq + 1
            behind += lag > 0
            most = max(most, lag)
        followed = len({subscriber.feed for subscriber in everybody})
        one, timings, dialect = (), hub.timings, ("dialect",)
        families.gauge("tokencast_subscribers", "Open responses that follow a generation.", present, dialect)
        families.gauge("tokencast_subscribers_stalled", "Those whose peer takes nothing at the moment.", {one: stalled})
        families.gauge("tokencast_subscribers_behind", "Those that lack events which are in the log.", {one: behind})
        families.gauge("tokencast_subscriber_lag_events", "How many the one furthest behind lacks.", {one: most})
        families.counter(
            "tokencast_subscriptions_ended",
            "Responses that ended, by why: ended is the generation's end, left the reader's, stalled took nothing.",
            hub.ended,
            ("reason",),
        )
        families.counter(
            "tokencast_events_delivered", "Events given to subscribers, each counted.", hub.delivered, dialect
        )
        families.gauge("tokencast_generations_followed", "Generations that have a subscriber here.", {one: followed})
        families.counter("tokencast_passes", "Times that readers were given what is new.", {one: timings.passes})
        families.histogram(
            "tokencast_token_gap_seconds", "Between two events, as readers see it.", {one: timings.gaps()}
        )
        families.histogram(
            "tokencast_first_token_seconds",
            "From a generation's creation to its first chunk's being written to readers.",
            {one: timings.first_tokens},
        )
        families.histogram(
            "tokencast_delivery_seconds",
            "From an event's arrival at the worker to its being written to the last reader here.",
            {one: timings.delays},
        )
        families.gauge("tokencast_cache_bytes", "Framed bytes of recently read logs.", {one: hub.cache.bytes})
        families.gauge("tokencast_draining", "1 while streams are being ended.", {one: hub.draining})

    def _collect_callers(self, families: Families) -> None:
        broker, route = self._broker, ("route",)
        families.counter(
            "tokencast_generations_created",
            "Generations accepted, by upstream and model as configured.",
            broker.created,
            ("upstream", "model"),
        )
        ended = {**broker.ended, ("", "", "failed", "attempts_exhausted"): self._reaper.failed}
        families.counter("tokencast_generations_ended", ENDED, ended, ("upstream", "model", "status", "code"))
        requests = self.requests
        families.counter(
            "tokencast_http_requests", "Requests answered.", requests.answered, ("method", *route, "status")
        )
        families.histogram(
            "tokencast_http_response_seconds", "From a request's head to its answer's.", requests.waits, route
        )
        families.gauge("tokencast_http_connections", "Open connections.", {(): len(self.connections)})

    def _collect_redis(self, families: Families) -> None:
        latencies = {(name,): redis.latency for name, redis in self._servers()}
        families.histogram("tokencast_redis_seconds", REDIS, latencies, ("server",))

    def _servers(self) -> list[tuple[str, Redis]]:
        return [("logs", self._broker.store.redis), ("queue", self._broker.queue.redis)]

    async def _collect_shared(self, families: Families) -> None:
        """What every gateway says alike: of the fleet. Left out while Redis is away, but for that it is."""
        pings = await asyncio.gather(*(_ping(redis) for _, redis in self._servers()))
        names = [(name,) for name, _ in self._servers()]
        families.gauge(
            "tokencast_redis_up",
            "1 if it answered.",
            dict(zip(names, map(float, map(bool, pings)), strict=True)),
            ("server",),
        )
        families.gauge(
            "tokencast_redis_ping_seconds",
            "Just now.",
            {name: ping for name, ping in zip(names, pings, strict=True) if ping},
            ("server",),
        )
        try:
            async with asyncio.timeout(REDIS_WITHIN):
                waiting = await self._broker.queue.waiting()
                fleet = await self._broker.queue.workers()
        except (StorageUnavailable, TimeoutError):
            return
        families.gauge("tokencast_queue_depth", "Generations that wait for a worker.", {(): waiting.depth})
        waited = waiting.seconds(self._broker.store.clock.last())
        families.gauge("tokencast_queue_oldest_seconds", "How long the first in turn has waited.", {(): waited})
        families.gauge("tokencast_workers", "Workers that are there.", {(): len(fleet)})
        families.gauge("tokencast_slots", "Generations that all workers can run.", {(): sum(w.slots for w in fleet)})
        families.gauge("tokencast_slots_busy", "Generations that they run.", {(): sum(w.running for w in fleet)})


async def _ping(redis: Redis) -> float | None:
    """Seconds; None where it does not answer."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(REDIS_WITHIN):
            return None if await redis.trouble() else time.monotonic() - began
    except TimeoutError:
        return None

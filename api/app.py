"""The gateway as an ASGI application: its routes, its middleware and its background tasks."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import Access
from api.dialects.native.dialect import NATIVE_API
from api.dialects.openai_chat.dialect import OPENAI_CHAT_API
from api.errors import new_request_id, on_broker_error, on_disconnect, on_http_error
from api.keys import LiveKeys
from api.middleware.admission import Admission
from api.middleware.cors import Cors
from api.middleware.crash import LastResort
from api.middleware.guard import Guard, Policy
from api.ops.health import HealthRoutes
from api.ops.history import HistoryRoutes
from api.ops.keys import KeyRoutes
from api.ops.me import CallerRoutes
from api.ops.metrics import GatewayMetrics, Requests
from api.ops.models import ModelRoutes
from api.ops.overview import OverviewRoutes
from api.ops.queue import QueueRoutes
from api.ops.subscribers import SubscriberRoutes
from api.ops.workers import WorkerRoutes
from api.pages.dashboard import pages
from api.pages.openapi import OpenApi
from api.pages.vendor import vendor_routes
from api.streaming.connections import Connections
from api.streaming.follow import Follow
from broker.auth.key_uses import KeyUses
from broker.broker import Broker
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import BrokerError
from broker.queue.reaper import Reaper
from broker.runtime.logging import REQUEST_ID
from broker.runtime.tracing import Spanned, span, tracing
from broker.settings.settings import Settings
from broker.webhooks.delivery import WebhookDelivery

logger = logging.getLogger("tokencast.api")

DIALECTS = (NATIVE_API, OPENAI_CHAT_API)


def create_app(broker: Broker) -> Starlette:
    """Create the application. The broker must be connected for as long as it serves."""
    settings = broker.settings
    key_uses = KeyUses(broker.queue.redis)
    api_keys = LiveKeys(settings, key_uses.note)
    access = Access(settings, api_keys, broker.tokens, broker.store.owner)
    connections = Connections(broker.hub, heartbeat=settings.heartbeat, send_timeout=settings.send_timeout)
    api_keys.on_change = connections.change_keys
    follow = Follow(broker.hub, access, connections)
    mounted = [dialect.mount(broker, follow) for dialect in DIALECTS]
    reaper = Reaper(broker.store.redis, broker.queue, broker.settings, broker.store.data_loss, broker.history)
    broker.history.samples = True
    subscribers = SubscriberRoutes(broker, access)
    webhooks = WebhookDelivery(broker.outbox, settings)
    metrics = GatewayMetrics(broker, reaper, webhooks, [dialect.name for dialect in DIALECTS])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        running = (reaper, metrics, connections, broker.waiting, webhooks, api_keys, key_uses, subscribers.reports)
        background = [asyncio.create_task(one.run()) for one in running]
        yield
        await webhooks.close()
        await cancel_and_wait(background)
        for one in mounted:
            if one.close is not None:
                await one.close()

    app = Starlette(
        routes=[
            *(route for one in mounted for route in one.routes),
            *OverviewRoutes(broker, access).routes(),
            *CallerRoutes(access).routes(),
            *ModelRoutes(broker, access).routes(),
            *QueueRoutes(broker, access).routes(),
            *KeyRoutes(access, api_keys, key_uses).routes(),
            *HistoryRoutes(broker, access).routes(),
            *subscribers.routes(),
            *WorkerRoutes(broker, access).routes(),
            *HealthRoutes(broker).routes(),
            *metrics.routes(),
            *OpenApi(DIALECTS).routes(),
            *pages(),
            *vendor_routes(),
        ],
        middleware=[Middleware(RequestLog, metrics.requests), *_middleware(broker.settings)],
        exception_handlers={
            BrokerError: on_broker_error,
            HTTPException: on_http_error,
            ClientDisconnect: on_disconnect,
        },
        lifespan=lifespan,
    )
    app.state.metrics = metrics
    app.state.connections = connections
    app.router.redirect_slashes = (
        False  # a redirect would reveal the scheme and host that a proxy hides, and repeat a token
    )
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    """Return the middleware between a request and the routes, outermost first."""
    strict = tuple(dialect.strict_prefix for dialect in DIALECTS if dialect.strict_prefix)
    cors = [Middleware(Cors, settings.cors_origins)] if settings.cors_origins else []
    guard = [] if settings.tenants else [Middleware(Guard, Policy.of(settings))]
    return [*cors, Middleware(LastResort), *guard, Middleware(Admission, strict)]


_NOT_IN_PATHS = re.compile(r"[^\w./:@+-].*", re.ASCII | re.DOTALL)  # a character of no path of ours, and the rest


class RequestLog:
    """Adds `x-request-id` to every response and logs every refusal: method, path, status, time.

    It never logs a query, a header or a body, since they contain tokens, keys and prompts. A path is cut off at the
    first character that may begin a misspelled or escaped query.
    """

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id()
        REQUEST_ID.set(request_id)
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("referrer-policy", "no-referrer")  # a URL may contain a token,
                headers.setdefault("cache-control", "no-store")  # and a cached response must not outlive it
                took = time.perf_counter() - started
                self._requests.note(scope["method"], _route(scope), message["status"], took)
                if message["status"] >= 400:
                    self._log(scope, message["status"], request_id, took)
            await send(message)

        if not tracing():  # keep the stack of each subscriber small
            await self._app(scope, receive, send_with_id)
            return
        parent = Headers(scope=scope).get("traceparent", "")
        with span(scope["method"], parent, kind="server", request__id=request_id) as serving:
            serving.note(http__request__method=scope["method"], url__scheme=scope.get("scheme", "http"))
            status = 0

            async def send_traced(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send_with_id(message)

            await self._app(scope, receive, send_traced)
            _note_response(serving, scope["method"], _route(scope), status)

    def _log(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        path = _NOT_IN_PATHS.sub("…", scope["path"])[:200]
        fields = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
        level = logging.ERROR if status >= 500 else logging.WARNING
        line = "%s %s → %d in %.1f ms (%s)"
        logger.log(level, line, scope["method"], path, status, seconds * 1000, request_id, extra={"fields": fields})


def _note_response(serving: Spanned, method: str, route: str, status: int) -> None:
    """Set the attributes that HTTP's semantic conventions require."""
    serving.rename(f"{method} {route}".rstrip())
    serving.note(http__route=route or None, http__response__status_code=status or None)
    if status >= 500:
        serving.note(error__type=str(status))
        serving.failed("")


def _route(scope: Scope) -> str:
    """Return the path pattern of the matched route, of which there are few; "" if none matched."""
    route: Route | None = scope.get("route")
    return route.path if route is not None else ""

"""Probes: `/healthz` reports that the process runs, `/readyz` whether it should receive traffic."""

from __future__ import annotations

import asyncio

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.errors import JSONResponse
from broker.broker import Broker
from broker.store.preflight import servers_in_use

TIMEOUT = 2.0  # seconds; below the usual 3 s of a probe, so that it receives the reason instead of nothing


class Status(Struct):
    """The result of a probe; `reason` says why the gateway is not ready."""

    status: str
    reason: str | UnsetType = UNSET


class HealthRoutes:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._servers = servers_in_use(broker.store.redis, broker.queue.redis)

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, _: Request) -> Response:
        return JSONResponse(Status("ok"))

    async def ready(self, _: Request) -> Response:
        reason = "draining" if self._broker.hub.draining else await self._missing()
        status = Status("ok") if reason is None else Status("unavailable", reason)
        return JSONResponse(status, 200 if reason is None else 503)

    async def _missing(self) -> str | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                for server in self._servers:
                    if trouble := await server.trouble():
                        return f"{'logs' if server.logs else 'queue'}: {trouble}"
        except TimeoutError:
            return "Redis does not answer in time."
        return None

"""Is the process there (`/healthz`), and should it get traffic (`/readyz`)?"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.errors import JSONResponse
from broker.broker import Broker
from broker.store.preflight import redis_servers

WITHIN = 2.0  # seconds: a probe that hears nothing for three or so learns less than one that is told why


class HealthRoutes:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._servers = redis_servers(broker.store.redis, broker.queue.redis)

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        reason = "draining" if self._broker.hub.draining else await self._missing()
        status = {"status": "ok"} if reason is None else {"status": "unavailable", "reason": reason}
        return JSONResponse(status, 200 if reason is None else 503)

    async def _missing(self) -> str | None:
        try:
            async with asyncio.timeout(WITHIN):
                for server in self._servers:
                    if trouble := await server.unavailable_reason():
                        return f"{'logs' if server.logs else 'queue'}: {trouble}"
        except TimeoutError:
            return "Redis does not answer in time."
        return None

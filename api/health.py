"""Is the process there (`/healthz`), and should it get traffic (`/readyz`)?"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.errors import JSONResponse
from broker.connection import Redis
from broker.errors import StorageUnavailable
from broker.service import Broker


class Health:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        reason = "draining" if self._broker.hub.draining else await self._missing()
        status = {"status": "ok"} if reason is None else {"status": "unavailable", "reason": reason}
        return JSONResponse(status, 200 if reason is None else 503)

    async def _missing(self) -> str | None:
        if not await answers(self._broker.store.redis):
            return "redis (logs)"
        return None if await answers(self._broker.queue.redis) else "redis (queue)"


async def answers(redis: Redis) -> bool:
    try:
        await redis.execute("PING")
    except StorageUnavailable:
        return False
    return True

"""`/v1/workers`: the workers, what they run, and the request that one drains; for operators."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import openapi_examples as examples
from api.auth import Access
from api.errors import JSONResponse
from api.openapi_parts import STRING, Json, answer, errors_with_key, json_of, operation, schemas_of, with_examples
from api.query import check_known
from api.requests import by_method
from broker.broker import Broker
from broker.queue.workers import read_workers, request_drain
from broker.records import WorkerList


class WorkerRoutes:
    """The handlers of `/v1/workers…`."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._redis = broker.queue.redis
        self._clock = broker.history.clock
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/workers", GET=self.list), by_method("/v1/workers/{worker}/drain", POST=self.drain)]

    async def list(self, request: Request) -> Response:
        self._access.require_operator(request)
        check_known(request)
        return JSONResponse(WorkerList(await read_workers(self._redis, await self._clock.now())))

    async def drain(self, request: Request) -> Response:
        self._access.require_operator(request)
        check_known(request)
        worker = request.path_params["worker"]
        return JSONResponse(await request_drain(self._redis, worker, await self._clock.now()), 202)


# --- /openapi.json -----------------------------------------------------------------------------------------------

SCHEMAS: Json = with_examples(schemas_of(WorkerList), WorkerList=examples.WORKERS, WorkerRecord=examples.WORKER)


def paths() -> Json:
    worker = {"name": "worker", "in": "path", "required": True, "schema": STRING}
    listed = answer("The workers.", json_of("WorkerList"))
    drain = operation(
        "drainWorker",
        "Let a worker take no more generations, end what it runs, and exit; for operators",
        _202=answer("The worker, which drains within five seconds.", json_of("WorkerRecord")),
        **errors_with_key("400", "404"),
    )
    return {
        "/v1/workers": {
            "get": operation(
                "listWorkers",
                "List the workers and what they run; for operators",
                _200=listed,
                **errors_with_key("400"),
            )
        },
        "/v1/workers/{worker}/drain": {"parameters": [worker], "post": drain},
    }

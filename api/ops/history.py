"""`GET /v1/history`: what was created, started and ended in the last minutes, first tokens, tokens, and errors."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.openapi_parts import OF_TENANT, STRING, Json, answer, errors_with_key, json_of, operation, query, whole
from api.query import check_known, text_of, whole_of
from api.requests import by_method
from broker.broker import Broker
from broker.history.reading import LONGEST, Wanted, read_history

DEFAULT = 60  # minutes


class HistoryRoutes:
    """The handler of `/v1/history`: of the caller's generations; for an operator those of all tenants, or of
    `?tenant=`."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/history", GET=self.get)]

    async def get(self, request: Request) -> Response:
        tenant = self._access.scope(request)
        check_known(request, "minutes", "model", "upstream", "tenant")
        minutes = whole_of(request, "minutes", DEFAULT, LONGEST)
        wanted = Wanted(tenant, text_of(request, "model"), text_of(request, "upstream"))
        history = self._broker.history
        now = await history.clock.now()
        return JSONResponse(await read_history(history.redis, now, wanted, minutes, self._broker.settings.name_of))


def paths() -> Json:
    return {
        "/v1/history": {
            "get": operation(
                "getHistory",
                "Look back on the last minutes: generations, first tokens, tokens per second, queue depth, errors",
                query("minutes", whole(1, LONGEST, DEFAULT), "Number of minutes, the current one included."),
                query("model", STRING, "Only generations of this model."),
                query("upstream", STRING, "Only generations whose call this upstream accepted."),
                OF_TENANT,
                _200=answer("The history.", json_of("HistoryRecord")),
                **errors_with_key("400"),
            )
        }
    }

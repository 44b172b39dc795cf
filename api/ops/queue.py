"""`/v1/queue` and `/v1/upstreams`: what waits and why, what the upstreams take, pauses, and limits at run time."""

from __future__ import annotations

from typing import Annotated, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse
from api.requests import by_method, read_body
from broker.broker import Broker
from broker.errors import InvalidRequest, UpstreamNotFound
from broker.events import WaitingReason
from broker.queue.upstreams import Circuit, UpstreamState
from broker.waiting import Level

_Body = TypeVar("_Body", bound=Struct)
Count = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class QueueLevel(Struct, frozen=True):
    """Generations of one priority that wait for the same upstreams."""

    upstreams: list[str]
    priority: int
    waiting: Count
    reason: WaitingReason
    retry_at: float | None


class QueueRecord(Struct, tag_field="object", tag="queue", frozen=True):
    """What waits, of all tenants."""

    depth: Annotated[int, Meta(description="Waiting generations, the scheduled ones included.")]
    by_priority: dict[str, Count]
    by_reason: dict[str, Count]
    levels: list[QueueLevel]
    paused: Annotated[list[str], Meta(description="`all`, `upstream NAME` or `tenant NAME`.")]


class UpstreamRecord(Struct, frozen=True):
    """An upstream, its limits, and its calls now."""

    name: str
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    learned_concurrency: Annotated[int | None, Meta(description="Calls at once that it is known to take.")]
    in_flight: Count
    waiting: Annotated[int, Meta(description="Generations that wait for it, alone or among others.")]
    refused: Annotated[int, Meta(description="Calls that it refused (429, 503), since a week without calls.")]
    circuit: Circuit
    retry_at: Annotated[float | None, Meta(description="Unix seconds until which nobody calls it.")]
    paused: bool


class UpstreamRecords(Struct, tag_field="object", tag="list", frozen=True):
    """The upstreams."""

    data: list[UpstreamRecord]


class Pause(Struct, forbid_unknown_fields=True, frozen=True):
    """What to pause or resume: an upstream, a tenant, or everything."""

    upstream: str | None = None
    tenant: str | None = None


class UpstreamPatch(Struct, forbid_unknown_fields=True, frozen=True):
    """Limits at run time; null removes one, and the configured limit counts again."""

    max_concurrency: Limit | UnsetType | None = UNSET
    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET


class QueueRoutes:
    """The handlers of `/v1/queue…` and `/v1/upstreams…`. Changes need an operator."""

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [
            by_method("/v1/queue", GET=self.queue),
            by_method("/v1/queue/pause", POST=self.pause),
            by_method("/v1/queue/resume", POST=self.resume),
            by_method("/v1/upstreams", GET=self.upstreams),
            by_method("/v1/upstreams/{name:path}", PATCH=self.change),
        ]

    async def queue(self, request: Request) -> Response:
        self._access.tenant(request)
        return JSONResponse(await self._queue())

    async def _queue(self) -> QueueRecord:
        levels, scheduled = await self._broker.waiting.levels()
        by_priority: dict[str, int] = {}
        by_reason: dict[str, int] = {"scheduled": scheduled} if scheduled else {}
        for level in levels:
            by_priority[str(level.priority)] = by_priority.get(str(level.priority), 0) + level.waiting
            by_reason[level.reason] = by_reason.get(level.reason, 0) + level.waiting
        paused = await self._broker.waiting.upstreams.paused()
        return QueueRecord(
            depth=scheduled + sum(level.waiting for level in levels),
            by_priority=by_priority,
            by_reason=by_reason,
            levels=[self._level(level) for level in levels],
            paused=sorted(self._shown(name) for name in paused),
        )

    def _level(self, level: Level) -> QueueLevel:
        names = [unquote(resource) for resource in level.lane.split(",")]
        return QueueLevel(names, level.priority, level.waiting, level.reason, level.retry_at)

    def _shown(self, name: str) -> str:
        kind, _, rest = name.partition(":")
        if kind == "u":
            return f"upstream {unquote(rest)}"
        return f"tenant {rest}" if kind == "t" else name

    async def pause(self, request: Request) -> Response:
        names = await self._names(request)
        await self._broker.waiting.upstreams.pause(names, await self._broker.store.clock.now())
        return JSONResponse(await self._queue())

    async def resume(self, request: Request) -> Response:
        await self._broker.waiting.upstreams.resume(await self._names(request))
        return JSONResponse(await self._queue())

    async def _names(self, request: Request) -> list[str]:
        """Return what a request pauses or resumes, in the queue's notation."""
        self._access.require_operator(request)
        body = await read_body(request, self._broker.settings.max_body)
        asked = _parse(body or b"{}", Pause)
        names = [f"u:{self._resource(asked.upstream)}"] if asked.upstream is not None else []
        names += [f"t:{asked.tenant}"] if asked.tenant else []
        return names or ["all"]

    async def upstreams(self, request: Request) -> Response:
        self._access.tenant(request)
        return JSONResponse(UpstreamRecords(await self._records()))

    async def _records(self) -> list[UpstreamRecord]:
        settings, waiting = self._broker.settings, self._broker.waiting
        resources = [one.name for one in settings.resources()]
        states = await waiting.upstreams.read(resources, await self._broker.store.clock.now())
        levels, _ = await waiting.levels()
        return [self._record(states[one], levels) for one in resources]

    def _record(self, state: UpstreamState, levels: list[Level]) -> UpstreamRecord:
        return UpstreamRecord(
            name=unquote(state.resource),
            max_concurrency=state.max_concurrency,
            requests_per_minute=state.requests_per_minute,
            tokens_per_minute=state.tokens_per_minute,
            learned_concurrency=state.learned_concurrency,
            in_flight=state.in_flight,
            waiting=sum(level.waiting for level in levels if state.resource in level.lane.split(",")),
            refused=state.refused,
            circuit=state.circuit,
            retry_at=state.busy_until,
            paused=state.paused,
        )

    async def change(self, request: Request) -> Response:
        self._access.require_operator(request)
        resource = self._resource(request.path_params["name"])
        patch = _parse(await read_body(request, self._broker.settings.max_body), UpstreamPatch)
        upstreams = self._broker.waiting.upstreams
        limits = {
            name: value
            for name in ("max_concurrency", "requests_per_minute", "tokens_per_minute")
            if not isinstance(value := getattr(patch, name), UnsetType)
        }
        if limits:
            await upstreams.set_limits(resource, limits)
        if patch.paused is True:
            await upstreams.pause([f"u:{resource}"], await self._broker.store.clock.now())
        elif patch.paused is False:
            await upstreams.resume([f"u:{resource}"])
        [record] = [one for one in await self._records() if one.name == request.path_params["name"]]
        return JSONResponse(record)

    def _resource(self, name: str) -> str:
        """Return the upstream of this name, as the queue names it. Raises UpstreamNotFound."""
        for resource in self._broker.settings.resources():
            if unquote(resource.name) == name:
                return resource.name
        raise UpstreamNotFound(f"There is no upstream `{name[:100]}`.")


def _parse(body: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise InvalidRequest(f"{message}.", param=path.rstrip("`") or None, code="invalid_type") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from None

"""The methods of `Broker` that concern the upstreams and the whole queue: states, limits at run time, and pauses."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from broker.errors import InvalidRequest, UpstreamNotFound
from broker.queue.tickets import Queue
from broker.queue.upstreams import UpstreamState
from broker.records import QueueLevel, QueueRecord, UpstreamRecord
from broker.settings.settings import Settings
from broker.store.store import Store
from broker.waiting.reasons import Level, Waiting

HIGHEST_LIMIT = 1_000_000_000


class QueueControl:
    """Base of `Broker`, which provides the attributes."""

    settings: Settings
    store: Store
    queue: Queue
    waiting: Waiting

    async def models(self) -> dict[str, str]:
        """Return the models that can be requested by name → their upstream: those named in the settings and, for
        patterns, those that the upstream reported to a worker."""
        reported = await self.queue.models()
        models: dict[str, str] = {}
        for upstream in self.settings.all_upstreams():
            for model in (*upstream.named, *reported.get(upstream.name, ())):
                if upstream.serves(model):
                    models.setdefault(model, upstream.name)
        return models

    async def queue_state(self) -> QueueRecord:
        """Return what waits, of all tenants: by priority, by reason, and by the upstreams that it waits for. Raises
        StorageUnavailable, as all methods of this class."""
        levels, scheduled = await self.waiting.levels()
        paused = await self.waiting.upstreams.paused()
        by_priority: dict[str, int] = {}
        by_reason: dict[str, int] = {"scheduled": scheduled} if scheduled else {}
        for level in levels:
            by_priority[str(level.priority)] = by_priority.get(str(level.priority), 0) + level.waiting
            by_reason[level.reason] = by_reason.get(level.reason, 0) + level.waiting
        return QueueRecord(
            depth=scheduled + sum(level.waiting for level in levels),
            by_priority=by_priority,
            by_reason=by_reason,
            levels=[_level(level) for level in levels],
            paused=sorted(map(_shown, paused)),
        )

    async def pause(self, *, upstream: str | None = None, tenant: str | None = None) -> QueueRecord:
        """Start no waiting generation of an upstream, of a tenant, or of both, or without arguments none at all, until
        `resume`. Running ones continue. Raises UpstreamNotFound."""
        await self.waiting.upstreams.pause(self._names(upstream, tenant), await self.store.clock.now())
        return await self.queue_state()

    async def resume(self, *, upstream: str | None = None, tenant: str | None = None) -> QueueRecord:
        """End a pause. Without arguments the one of everything: pauses of upstreams and tenants remain. Raises
        UpstreamNotFound."""
        await self.waiting.upstreams.resume(self._names(upstream, tenant))
        return await self.queue_state()

    def _names(self, upstream: str | None, tenant: str | None) -> Sequence[str]:
        """Return what is paused or resumed, as the queue names it."""
        names = [f"u:{self._resource(upstream)}"] if upstream is not None else []
        names += [f"t:{tenant}"] if tenant is not None else []
        return names or ["all"]

    async def upstreams(self) -> list[UpstreamRecord]:
        """Return the upstreams, with their limits and their calls now."""
        resources = [one.name for one in self.settings.resources()]
        states = await self.waiting.upstreams.read(resources, await self.store.clock.now())
        levels, _ = await self.waiting.levels()
        return [_record(states[one], levels) for one in resources]

    async def upstream(self, name: str) -> UpstreamRecord:
        """Return an upstream. Raises UpstreamNotFound."""
        self._resource(name)
        [record] = [one for one in await self.upstreams() if one.name == name]
        return record

    async def set_upstream_limits(self, name: str, **limits: int | None) -> UpstreamRecord:
        """Set limits of an upstream at run time: `max_concurrency`, `requests_per_minute`, `tokens_per_minute`. They
        take precedence over configured ones; None removes one. Calls under way continue. Raises UpstreamNotFound, or
        InvalidRequest."""
        for limit, value in limits.items():
            if limit not in ("max_concurrency", "requests_per_minute", "tokens_per_minute"):
                raise InvalidRequest(f"`{limit}` is not a limit of an upstream.", param=limit)
            if value is not None and not 1 <= value <= HIGHEST_LIMIT:
                raise InvalidRequest(f"`{limit}` must be between 1 and {HIGHEST_LIMIT}.", param=limit)
        resource = self._resource(name)
        if limits:
            await self.waiting.upstreams.set_limits(resource, limits)
        return await self.upstream(name)

    def _resource(self, name: str) -> str:
        """Return the upstream of this name, as the queue names it. Raises UpstreamNotFound."""
        for resource in self.settings.resources():
            if unquote(resource.name) == name:
                return resource.name
        raise UpstreamNotFound(f"There is no upstream `{name[:100]}`.")


def _level(level: Level) -> QueueLevel:
    names = [unquote(resource) for resource in level.lane.split(",")]
    return QueueLevel(names, level.priority, level.waiting, level.reason, level.retry_at)


def _shown(name: str) -> str:
    kind, _, rest = name.partition(":")
    if kind == "u":
        return f"upstream {unquote(rest)}"
    return f"tenant {rest}" if kind == "t" else name


def _record(state: UpstreamState, levels: Sequence[Level]) -> UpstreamRecord:
    return UpstreamRecord(
        name=unquote(state.resource),
        max_concurrency=state.max_concurrency,
        requests_per_minute=state.requests_per_minute,
        tokens_per_minute=state.tokens_per_minute,
        told_limits=list(state.told_limits),
        learned_concurrency=state.learned_concurrency,
        in_flight=state.in_flight,
        waiting=sum(level.waiting for level in levels if state.resource in level.lane.split(",")),
        refused=state.refused,
        circuit=state.circuit,
        retry_at=state.busy_until,
        paused=state.paused,
    )

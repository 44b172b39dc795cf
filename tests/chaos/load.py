"""The load of a chaos run: clients that create generations, and readers that follow them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from tests.chaos.plan import Plan, PlannedGeneration
from tests.chaos.world import World
from tests.faults.oracle import ENDINGS, Said
from tests.faults.subscriber import CompletionSubscriber, Subscriber

POISON_LENGTH = 100_000


@dataclass
class Followed:
    """One generation, from its creation to the end of its last reader."""

    request: PlannedGeneration
    label: str
    poison: bool = False
    said: Said | None = None
    losses_before: int = 0
    """The number of restarts of Redis with empty data before its creation."""
    subscribers: list[Subscriber] = field(default_factory=list)
    completions: list[CompletionSubscriber] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    cancelled: bool = False
    deleted: bool = False
    stored: dict[str, Any] | None = None
    """Its state after its last reader had an ending; None if it no longer existed."""
    calls: int = 0
    """The number of upstream calls for it."""

    @property
    def readers(self) -> list[Subscriber | CompletionSubscriber]:
        return [*self.subscribers, *self.completions]


class Load:
    """Runs a plan's generations against a world."""

    def __init__(self, world: World, http: aiohttp.ClientSession, plan: Plan) -> None:
        self.followed: list[Followed] = []
        self._world = world
        self._http = http
        self._plan = plan
        self._random = Random(plan.seed + 1)
        self._stalled: list[socket.socket] = []

    def gateway(self) -> str:
        return self._random.choice(self._world.urls)

    async def run(self, request: PlannedGeneration, *, poison: bool = False) -> None:
        """Create a generation, and return when its last reader has an ending."""
        generation = Followed(
            request, f"{'poison' if poison else 'chaos'}-{self._plan.seed}-{len(self.followed)}", poison
        )
        self.followed.append(generation)
        generation.losses_before = self._world.losses
        gid = await self._enqueue(generation)
        length = POISON_LENGTH if poison else request.length
        generation.said = Said(gid, request.number, length, request.unicode)
        work: list[Awaitable[Any]] = [self._read(generation, n, after) for n, after in enumerate(request.joins)]
        if not poison and request.cancelled_after is not None:
            work.append(self._later(request.cancelled_after, generation, self._cancel))
        if not poison and request.deleted_after is not None:
            work.append(self._later(request.deleted_after, generation, self._delete))
        if request.stalled:
            self._subscribe_and_never_read(gid)
        await asyncio.gather(*work)
        await self._until_answered(lambda: self._has_ended(generation, gid))

    async def _enqueue(self, generation: Followed) -> str:
        """Repeat the request with the same idempotency key until it is accepted."""
        gids = await asyncio.gather(*(self._accepted(generation) for _ in range(1 + generation.request.twice)))
        if len(set(gids)) > 1 and self._world.losses == generation.losses_before:
            generation.complaints.append(f"two generations for one key: {gids}")
        return gids[-1]

    async def _accepted(self, generation: Followed) -> str:
        request = generation.request
        directive = request.upstream.replace("restart", "").strip()
        length, speed = (POISON_LENGTH, 20) if generation.poison else (request.length, request.speed)
        prompt = f"[[sim seed={request.number} length={length} speed={speed} label={generation.label} {directive}]]"
        body = {
            "model": "sim",
            "messages": [{"role": "user", "content": prompt}],
            "on_upstream_error": "restart" if request.restarts else "fail",
        }
        headers = {"idempotency-key": generation.label}

        async def post() -> str | None:
            async with self._http.post(f"{self.gateway()}/v1/generations", json=body, headers=headers) as response:
                if response.status in (200, 202):
                    return str((await response.json())["id"])
                if response.status != 503:
                    generation.complaints.append(f"enqueue: {response.status} {await response.text()}")
                return None

        return await self._until_answered(post)

    async def _read(self, generation: Followed, number: int, after: float) -> None:
        assert generation.said is not None
        await asyncio.sleep(after)
        if number < generation.request.completions:
            reader = CompletionSubscriber(self._http, self.gateway, generation.said)
            generation.completions.append(reader)
        else:
            reader = Subscriber(self._http, self.gateway, generation.said, leave=lambda: self._random.random() < 0.004)
            generation.subscribers.append(reader)
        await reader.run()

    async def _later(self, after: float, generation: Followed, what: Callable[[Followed], Awaitable[None]]) -> None:
        await asyncio.sleep(after)
        await what(generation)

    async def _cancel(self, generation: Followed) -> None:
        generation.cancelled = True
        await self._send(generation, "POST", "/cancel", (200, 404, 410))

    async def _delete(self, generation: Followed) -> None:
        generation.deleted = True
        await self._send(generation, "DELETE", "", (204, 404, 410))

    async def _send(self, generation: Followed, method: str, path: str, expected: tuple[int, ...]) -> None:
        assert generation.said is not None
        suffix = f"/v1/generations/{generation.said.gid}{path}"

        async def call() -> bool | None:
            async with self._http.request(method, self.gateway() + suffix) as response:
                if response.status not in (*expected, 503):
                    generation.complaints.append(f"{method} {path}: {response.status} {await response.text()}")
                return response.status in expected or None

        await self._until_answered(call)

    async def _until_answered(self, call: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                async with asyncio.timeout(10):
                    if (answer := await call()) is not None:
                        return answer
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            await asyncio.sleep(self._random.uniform(0.05, 0.3))

    def _subscribe_and_never_read(self, gid: str) -> None:
        host, _, port = self.gateway().removeprefix("http://").partition(":")
        try:
            peer = socket.create_connection((host, int(port)), timeout=1)
            peer.sendall(f"GET /v1/generations/{gid}/events HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        except OSError:
            return
        self._stalled.append(peer)

    def close(self) -> None:
        for peer in self._stalled:
            peer.close()

    async def count_calls(self) -> None:
        """Count the calls of each generation in the upstream's journal."""
        origin = self._world.upstream.removesuffix("/v1")
        async with self._http.get(f"{origin}/sim/calls") as response:
            calls = [call["label"] for call in await response.json()]
        for generation in self.followed:
            generation.calls = calls.count(generation.label)

    async def _has_ended(self, generation: Followed, gid: str) -> bool | None:
        """Whether it is stored as ended, or no longer exists. After a loss a worker may still put it back."""
        async with self._http.get(f"{self.gateway()}/v1/generations/{gid}") as response:
            if response.status in (404, 410):
                generation.stored = None
                return True
            if response.status == 200:
                generation.stored = await response.json()
            return (generation.stored is not None and generation.stored["status"] in ENDINGS) or None

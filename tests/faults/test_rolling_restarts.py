"""Deploys: every process is told to stop, waited for, and started again with the same settings, one after the other."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from contextlib import AsyncExitStack
from typing import Any, Self

import httpx2

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.settings.settings import SIMULATED_KEY
from tests.faults.oracle import Said
from tests.faults.scene import Audience, Stored, audience, prompt, queue_is_empty, stored
from tests.faults.subscriber import client
from tests.support import Service, clean_environment, upstream_calls, wait_until


class Unit:
    """A process that a deploy replaces."""

    def __init__(self, kind: str, **variables: str) -> None:
        self._kind = kind
        self._variables = variables
        self.past: list[Service] = []

    @property
    def service(self) -> Service:
        return self.past[-1]

    async def start(self) -> None:
        self.past.append(await Service.start(self._kind, environment=clean_environment(**self._variables)))
        await self.service.says("listening|ready")

    async def restart(self) -> None:
        self.service.send(signal.SIGTERM)
        await self.service.wait()
        await self.start()

    async def end(self) -> None:
        if self.past:
            await self.service.stop()


class Deployment:
    """A context manager: two workers, two gateways, and clients that know both gateways."""

    def __init__(self, redis_url: str, upstream_url: str, **worker: str) -> None:
        upstream = {"OPENAI_BASE_URL": upstream_url, "OPENAI_API_KEY": SIMULATED_KEY}
        ports = [free_port() for _ in range(2)]
        gateway = {"TOKENCAST_DRAIN": "0.5", "TOKENCAST_MODELS": "sim"}
        self.workers = [Unit("worker", REDIS_URL=redis_url, **upstream, **worker) for _ in range(2)]
        self.gateways = [Unit("api", REDIS_URL=redis_url, PORT=str(port), **gateway) for port in ports]
        self._urls = itertools.cycle(f"http://127.0.0.1:{port}" for port in ports)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.http = await self._stack.enter_async_context(client())
        units = [*self.workers, *self.gateways]
        for unit in units:
            self._stack.push_async_callback(unit.end)
        await asyncio.gather(*(unit.start() for unit in units))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def url(self) -> str:
        """The URL of either gateway, in turn, like a load balancer without a health check."""
        return next(self._urls)

    async def watched(self, label: str, *, native: int, completions: int, seed: int = 7, **asked: Any) -> Audience:
        """A generation with subscribers from its first token on."""
        async with httpx2.AsyncClient() as http:
            body = prompt(label, seed=seed, **asked)
            gid = (await http.post(f"{self.url()}/v1/generations", json=body)).json()["id"]
        said = Said(gid, seed, asked["length"])
        crowd = audience(self.http, self.url, said, native=native, completions=completions)
        return await self._stack.enter_async_context(crowd)

    async def running(self, gid: str, attempt: int) -> Unit:
        """The worker that runs this attempt."""
        line = f"{gid}: attempt {attempt}"
        return await wait_until(lambda: next((one for one in self.workers if line in one.service.output), None))

    async def events(self, gid: str) -> list[dict[str, Any]]:
        async with httpx2.AsyncClient() as http:
            headers = {"accept": "application/json"}
            answer = await http.get(f"{self.url()}/v1/generations/{gid}/events?limit=1000", headers=headers)
        return answer.json()["data"]


async def test_two_deploys_are_invisible_to_two_hundred_subscribers(own_redis: EmbeddedRedis, sim: str) -> None:
    """No refused request, no broken response, no reset; every generation completes with one upstream call."""
    async with Deployment(own_redis.url, sim) as deployed:
        for deploy in (1, 2):
            labels = [f"deploy-{deploy}-{n}" for n in range(10)]
            crowds = [
                await deployed.watched(label, seed=seed, native=16, completions=4, length=100, speed=15)
                for seed, label in enumerate(labels)
            ]
            for crowd in crowds:
                await crowd.has_text()
            for unit in (*deployed.gateways, *deployed.workers):
                await unit.restart()
            for crowd, label in zip(crowds, labels, strict=True):
                assert await crowd.ending() == "completed"
                assert crowd.resets == 0
                assert [one.cut for one in (*crowd.native, *crowd.completions)] == [0] * 20
                assert await stored(own_redis.url, sim, crowd.said, label) == Stored("completed", 1, budget=0, calls=1)
        ended = [re.findall(r"stopping: (\d+) streams", old.output) for unit in deployed.gateways for old in unit.past]
        assert sum(int(streams) for found in ended for streams in found) > 50
        await queue_is_empty(own_redis.url)


async def test_six_deploys_without_a_drain_use_up_no_attempt(own_redis: EmbeddedRedis, sim: str) -> None:
    """Generations that a worker cannot finish are handed over immediately without using up an attempt. The upstream
    stalls six times, so that each of the workers is stopped in the middle."""
    async with Deployment(own_redis.url, sim, TOKENCAST_WORKER_DRAIN="0") as deployed:
        crowd = await deployed.watched(
            "handed-over", native=3, completions=2, length=60, speed=200, more="fault=stall at=20 times=6"
        )
        for restarts in range(6):
            await wait_until(lambda restarts=restarts: has_stalled(sim, restarts))
            await crowd.has_restarted(restarts)
            await (await deployed.running(crowd.said.gid, restarts + 1)).restart()
        assert await crowd.ending() == "completed"
        assert await stored(own_redis.url, sim, crowd.said, "handed-over") == Stored("completed", 7, budget=0, calls=7)
        resets = [event["data"] for event in await deployed.events(crowd.said.gid) if event["event"] == "reset"]
        again = {"reason": "worker_stopped", "upstream": "default"}
        assert resets == [{"attempt": n, **again} for n in range(2, 8)]
        await queue_is_empty(own_redis.url)


async def has_stalled(upstream: str, call: int) -> bool:
    calls = await upstream_calls(upstream, "handed-over")
    return len(calls) > call and calls[call]["chunks_sent"] == 20

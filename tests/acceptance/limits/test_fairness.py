"""Fairness: the queue of one tenant delays the next generation of another by at most one slot."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, gateway, gather, request_body, upstream_calls, wait_until, worker

KEYS = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "ben"))
ANNA, BEN = {"authorization": "Bearer key-anna"}, {"authorization": "Bearer key-ben"}
UNLIMITED = {"TOKENCAST_TENANT_RUNNING": "0", "TOKENCAST_TENANT_QUEUED": "0", "TOKENCAST_TENANT_PER_MINUTE": "0"}
FLOOD = 1000


@pytest.fixture
async def api(own_redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS, **UNLIMITED) as started:
        yield started


def short_request(seed: int) -> dict[str, object]:
    """The seed identifies the tenant: the simulated upstream records it with the call."""
    return request_body(f"[[sim label=turn seed={seed} length=1 speed=1000]]", "sim")


async def flood(api: Gateway) -> None:
    async def create_some() -> None:
        for _ in range(FLOOD // 20):
            await api.create(short_request(1), **ANNA)

    await gather(*(create_some() for _ in range(20)))


async def called_seeds(upstream: str) -> list[int]:
    """The seeds of the upstream calls, in order."""
    return [call["seed"] for call in await upstream_calls(upstream, "turn")]


async def test_a_thousand_generations_delay_another_tenant_by_one_slot(
    own_redis: EmbeddedRedis, api: Gateway, sim: str
) -> None:
    """One worker with one slot, so that the order of the calls is the order of the starts."""
    limits = {**UNLIMITED, "TOKENCAST_SLOTS": "1"}
    async with worker(own_redis.url, sim, **limits), connect(own_redis.url) as broker:
        silent = await api.create(request_body("[[sim label=silent fault=mute]]", "sim"), **ANNA)
        await wait_until(lambda: upstream_calls(sim, "silent"))
        await flood(api)
        assert await broker.queue.depth() == FLOOD
        gid = (await api.create(short_request(2), **BEN))["id"]
        await api.http.post(f"/v1/generations/{silent['id']}/cancel", headers=ANNA)

        async def has_completed() -> bool:
            answer = await api.http.get(f"/v1/generations/{gid}", headers=BEN)
            return answer.json()["status"] == "completed"

        await wait_until(has_completed)
        assert (await called_seeds(sim)).index(2) <= 1

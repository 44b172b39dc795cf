"""Whose turn it is: what one tenant has queued delays another's next generation by one slot's time at most."""

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


def short(seed: int) -> dict[str, object]:
    """Whose it is, the seed says: the simulated upstream keeps it with the call."""
    return request_body(f"[[sim label=turn seed={seed} length=1 speed=1000]]", "sim")


async def flood(api: Gateway) -> None:
    async def some() -> None:
        for _ in range(FLOOD // 20):
            await api.create(short(1), **ANNA)

    await gather(*(some() for _ in range(20)))


async def started(upstream: str) -> list[int]:
    """Whose generations the upstream was asked for, in order."""
    return [call["seed"] for call in await upstream_calls(upstream, "turn")]


async def test_a_thousand_of_one_tenant_delay_another_s_next_by_one_slot(
    own_redis: EmbeddedRedis, api: Gateway, sim: str
) -> None:
    """One worker with one slot, so that the order of the calls is the order of the starts."""
    limits = {**UNLIMITED, "TOKENCAST_SLOTS": "1"}
    async with worker(own_redis.url, sim, **limits), connect(own_redis.url) as broker:
        silent = await api.create(request_body("[[sim label=silent fault=mute]]", "sim"), **ANNA)
        await wait_until(lambda: upstream_calls(sim, "silent"))
        await flood(api)
        assert await broker.queue.depth() == FLOOD
        gid = (await api.create(short(2), **BEN))["id"]
        await api.http.post(f"/v1/generations/{silent['id']}/cancel", headers=ANNA)

        async def over() -> bool:
            answer = await api.http.get(f"/v1/generations/{gid}", headers=BEN)
            return answer.json()["status"] == "completed"

        await wait_until(over)
        assert (await started(sim)).index(2) <= 1

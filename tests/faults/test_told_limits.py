"""An upstream tells its rate limits in the headers of its responses: the workers keep them without a refusal."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.crowd import all_ended, body
from tests.support import DEADLINE, worker

MANY = 32
JOB = "[[sim length=10 speed=10]]"  # a second, so that two or three calls at once use the rate
RATES = {"requests_per_minute": 20, "minute": 10}


@asynccontextmanager
async def limited(sim: str, quota: Mapping[str, Any]) -> AsyncGenerator[httpx2.AsyncClient]:
    """The control routes of a simulated upstream with this quota."""
    async with httpx2.AsyncClient(base_url=sim.removesuffix("/v1"), timeout=DEADLINE) as control:
        await control.delete("/sim/calls")
        await control.put("/sim/quota", json=quota)
        yield control
        await control.put("/sim/quota", json={})


async def test_calls_are_sent_at_the_rate_that_the_upstream_tells(own_redis: EmbeddedRedis, sim: str) -> None:
    """The first calls use up what is left of the window; the learned number of calls at once is too high then."""
    async with (
        limited(sim, RATES) as control,
        worker(own_redis.url, sim),
        worker(own_redis.url, sim),
        connect(own_redis.url) as broker,
    ):
        gids = [(await broker.enqueue(body(JOB, model="sim"))).id for _ in range(MANY)]
        ended = await all_ended(broker, gids)
        counts = (await control.get("/sim/counts")).json()
        upstream = await broker.upstream("default")
    assert {(one.status, one.attempt) for one in ended} == {("completed", 1)}
    assert (counts["calls"], counts["refused"]) == (MANY, 0)
    assert upstream.requests_per_minute == pytest.approx(120, abs=1)
    assert upstream.told_limits == ["requests_per_minute"]

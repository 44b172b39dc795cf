"""Kill a gateway at every step that it takes for a generation, immediately before and after Redis executes the step.

After each of them there is one generation with one ending, which is the same for all subscribers, and one upstream
call.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from itertools import cycle

import httpx2
import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.oracle import Said
from tests.faults.scene import QUICK, Stored, ask, audience, is_overdue, stored
from tests.faults.subscriber import client
from tests.faults.tripwire import Tripwire, When, script, tripwire
from tests.support import Gateway, Service, gateway, upstream_calls, wait_until
from tests.support import worker as start_worker


@pytest.fixture(scope="module")
async def quick(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **QUICK) as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
async def worker(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Service, None]:
    async with start_worker(redis.url, sim, **QUICK) as started:
        yield started


@pytest.fixture
async def doomed(redis: EmbeddedRedis) -> AsyncGenerator[tuple[Gateway, Tripwire], None]:
    """A gateway that the test kills, and the tripwire between it and Redis."""
    async with tripwire(redis.url) as wire, gateway(wire.url, **QUICK) as started:
        yield started, wire


def kill(dying: Gateway) -> None:
    dying.process.send(signal.SIGKILL)


CREATE_POINTS = {
    "before the creation": ("create", "before"),
    "after the creation": ("create", "after"),
    "before the offer to the queue": ("offer", "before"),
    "after the offer to the queue": ("offer", "after"),
}


@pytest.mark.parametrize(("name", "when"), CREATE_POINTS.values(), ids=CREATE_POINTS.keys())
async def test_a_client_repeats_its_request_at_another_gateway_after_a_crash(
    redis: EmbeddedRedis, sim: str, quick: Gateway, doomed: tuple[Gateway, Tripwire],
    name: str, when: When,
) -> None:  # fmt: skip
    """The client sends the same Idempotency-Key: one generation, one upstream call."""
    dying, wire = doomed
    label = f"asked-again-{name}-{when}"
    trap = wire.trap(script(name), when, lambda: kill(dying))
    with pytest.raises(httpx2.TransportError):
        await ask(dying, label, **{"idempotency-key": label})
    assert trap.sprung.is_set()
    async with client() as http:
        said = await ask(quick, label, **{"idempotency-key": label})
        await is_overdue(redis.url, said.gid)
        async with audience(http, lambda: quick.url, said) as people:
            assert await people.ending() == "completed"
    assert await stored(redis.url, sim, said, label) == Stored("completed", attempts=1, budget=0, calls=1)
    async with connect(redis.url) as broker:
        listed, _ = await broker.store.list("default", limit=100)
        assert [generation.metadata for generation in listed].count({"label": label}) == 1


@pytest.mark.parametrize(("name", "when"), [("create", "after"), ("offer", "before")])
async def test_a_generation_runs_although_its_gateway_died_and_no_request_is_repeated(
    redis: EmbeddedRedis, sim: str, quick: Gateway, doomed: tuple[Gateway, Tripwire],
    name: str, when: When,
) -> None:  # fmt: skip
    """The generation runs because a reaper finds it."""
    dying, wire = doomed
    wire.trap(script(name), when, lambda: kill(dying))
    label = f"not-asked-again-{name}"
    with pytest.raises(httpx2.TransportError):
        await ask(dying, label)
    (listed,) = [
        one for one in (await quick.http.get("/v1/generations")).json()["data"] if one["metadata"] == {"label": label}
    ]
    assert listed["status"] == "queued"
    said = Said(listed["id"], 7, 60)
    async with client() as http, audience(http, lambda: quick.url, said) as people:
        assert await people.ending() == "completed"
    assert await stored(redis.url, sim, said, label) == Stored("completed", attempts=1, budget=0, calls=1)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["cancel", "delete"])
async def test_a_gateway_dies_while_it_cancels_or_deletes_a_generation(
    redis: EmbeddedRedis, sim: str, quick: Gateway, doomed: tuple[Gateway, Tripwire],
    name: str, when: When,
) -> None:  # fmt: skip
    """Half of the subscribers are connected to the killed gateway. They reconnect to the other one, and all see one
    ending."""
    dying, wire = doomed
    label = f"ended-{name}-{when}"
    said = await ask(quick, label, length=3, more="fault=stall at=3")
    gateways = cycle([dying, quick])

    def live_gateway_url() -> str:
        return next(one for one in gateways if one.process.process.returncode is None).url

    method, path = {"cancel": ("POST", "/cancel"), "delete": ("DELETE", "")}[name]
    async with client() as http, audience(http, live_gateway_url, said, native=4) as people:
        await people.has_text()
        wire.trap(script(name), when, lambda: kill(dying))
        with pytest.raises(httpx2.TransportError):
            await dying.http.request(method, f"/v1/generations/{said.gid}{path}")
        repeated = await quick.http.request(method, f"/v1/generations/{said.gid}{path}")
        assert repeated.status_code == {"cancel": 200, "delete": 410 if when == "after" else 204}[name]
        assert await people.ending() == {"cancel": "cancelled", "delete": "gone"}[name]

    async def upstream_disconnected() -> bool:
        return [call["outcome"] for call in await upstream_calls(sim, label)] == ["disconnected"]

    await wait_until(upstream_disconnected)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_gateway_dies_while_it_stores_the_text_of_a_cancelled_generation(
    redis: EmbeddedRedis, quick: Gateway, doomed: tuple[Gateway, Tripwire], when: When
) -> None:
    dying, wire = doomed
    said = await ask(quick, f"settled-{when}", length=3, more="fault=stall at=3")
    async with client() as http, audience(http, lambda: quick.url, said) as people:
        await people.has_text(len(said.text))
        async with connect(redis.url) as broker:
            await broker.store.cancel(said.gid, "default")
        wire.trap(script("keep_choices"), when, lambda: kill(dying))
        with pytest.raises(httpx2.TransportError):
            await dying.get(said.gid)
        assert (await quick.get(said.gid))["text"] == people.native[0].shown.text
        assert await people.ending() == "cancelled"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_reaper_dies_while_it_requeues_an_overdue_generation(sim: str, when: When) -> None:
    """Its worker is dead too, and no other process runs: the next processes that start find the generation again."""
    label = f"reaped-{when}"
    async with EmbeddedRedis() as redis, tripwire(redis.url) as wire, client() as http:
        async with gateway(wire.url, **QUICK) as dying, start_worker(redis.url, sim, **QUICK) as lost:
            said = await ask(dying, label, length=30, more="fault=stall at=3 times=1")
            async with audience(http, lambda: dying.url, said) as people:
                await people.has_text()
            wire.trap(script("reap"), when, lambda: kill(dying))
            lost.send(signal.SIGKILL)
            await dying.process.wait()
        async with (
            gateway(redis.url, **QUICK) as quick,
            start_worker(redis.url, sim, **QUICK),
            audience(http, lambda: quick.url, said) as people,
        ):
            assert await people.ending() == "completed"
            assert people.resets == 1
        assert await stored(redis.url, sim, said, label) == Stored("completed", attempts=2, budget=1, calls=2)

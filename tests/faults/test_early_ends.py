"""Generations that are ended before their upstream has said all: by a caller, or because they take too long."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.scene import QUICK, ask, audience
from tests.faults.subscriber import client
from tests.support import Gateway, gateway, gather, upstream_calls, wait_until, worker
from worker.simulator.text import pieces

# What the upstream does when the end comes.
DOING = {
    "streams": "",
    "idles": "fault=stall at=5",
    "says nothing": "fault=mute",
    "sends only comments": "fault=comments at=5",
    "refuses": "fault=429",
}


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **QUICK) as started:
        yield started


async def outcomes(upstream: str, label: str) -> list[str | None]:
    return [call["outcome"] for call in await upstream_calls(upstream, label)]


async def is_let_go(upstream: str, label: str) -> bool:
    return None not in await outcomes(upstream, label)


async def is_called(upstream: str, label: str) -> bool:
    return bool(await outcomes(upstream, label))


async def test_what_takes_too_long_fails_with_a_code_of_its_own(own_redis: EmbeddedRedis, sim: str) -> None:
    """Whatever the upstream does meanwhile; it is let go."""

    async def too_long(label: str, directive: str) -> None:
        said = await ask(api, label, length=1000, speed=50, more=directive)
        frames = await api.events(said.gid)
        assert frames[-1].event == "failed"
        assert frames[-1].json["error"]["code"] == "timeout"
        generation = await api.get(said.gid)
        assert (generation["status"], generation["error"]["code"]) == ("failed", "timeout")
        assert generation["ended_at"] - generation["started_at"] >= 1
        await wait_until(partial(is_let_go, sim, label))

    async with gateway(own_redis.url, **QUICK) as api, worker(own_redis.url, sim, **QUICK, TOKENCAST_MAX_DURATION="1"):
        await gather(*(too_long(f"too-long-{n}", directive) for n, directive in enumerate(DOING.values())))


async def test_a_cancel_before_any_worker_has_it(own_redis: EmbeddedRedis, sim: str) -> None:
    """It ends at once, and nobody ever calls the upstream for it."""
    async with gateway(own_redis.url, **QUICK) as api:
        said = await ask(api, "cancelled-before")
        async with client() as http, audience(http, lambda: api.url, said) as people:
            answer = await api.http.post(f"/v1/generations/{said.gid}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
            assert await people.ending() == "cancelled"
        async with connect(own_redis.url) as broker:
            assert await broker.queue.depth() == 0
        async with worker(own_redis.url, sim, **QUICK):
            assert (await api.ended((await ask(api, "next", length=3)).gid))["status"] == "completed"
        assert not await is_called(sim, "cancelled-before")
        assert (await api.get(said.gid))["status"] == "cancelled"


@pytest.mark.parametrize("directive", DOING.values(), ids=DOING.keys())
async def test_a_cancel_while_the_upstream(
    sim: str, api: Gateway, patient: None, directive: str, request: pytest.FixtureRequest
) -> None:
    """All see it, the text so far stays, and the upstream is let go."""
    label = "cancelled-" + request.node.callspec.id.replace(" ", "-")
    said = await ask(api, label, length=1000, speed=50, more=directive)
    async with client() as http, audience(http, lambda: api.url, said) as people:
        await wait_until(partial(is_called, sim, label))
        if directive in ("", DOING["idles"], DOING["sends only comments"]):
            await people.has_text()
        answer = await api.http.post(f"/v1/generations/{said.gid}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert await people.ending() == "cancelled"
        assert people.resets == 0
        shown = {one.shown.text for one in (*people.native, *people.completions)}
    await wait_until(partial(is_let_go, sim, label))
    generation = await api.get(said.gid)
    assert (generation["status"], {generation["text"]}) == ("cancelled", shown)
    tokens = generation["usage"]["completion_tokens"]
    assert generation["text"] == "".join(pieces(7, 1000)[:tokens])


@pytest.fixture(scope="module")
async def patient(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[None, None]:
    async with worker(redis.url, sim, **QUICK):
        yield


async def test_a_cancel_after_the_end_changes_nothing(sim: str, api: Gateway, patient: None) -> None:
    said = await ask(api, "cancelled-after", length=5)
    async with client() as http, audience(http, lambda: api.url, said) as people:
        assert await people.ending() == "completed"
        for _ in range(2):
            answer = await api.http.post(f"/v1/generations/{said.gid}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert (await api.events(said.gid))[-1].event == "completed"
    assert await outcomes(sim, "cancelled-after") == ["completed"]

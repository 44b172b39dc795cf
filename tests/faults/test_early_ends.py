"""Generations that end before their upstream has sent everything: cancelled by a caller, or too long."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.faults.scene import QUICK, ask, audience, prompt
from tests.faults.subscriber import client
from tests.support import Gateway, gateway, gather, upstream_calls, wait_until, worker
from worker.simulator.text import pieces

# The upstream's behaviour when the generation is ended.
UPSTREAM_BEHAVIOURS = {
    "streams": "",
    "idles": "fault=stall at=5",
    "sends nothing": "fault=mute",
    "sends only comments": "fault=comments at=5",
    "refuses": "fault=429",
}


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **QUICK) as started:
        yield started


async def outcomes(upstream: str, label: str) -> list[str | None]:
    return [call["outcome"] for call in await upstream_calls(upstream, label)]


async def upstream_is_disconnected(upstream: str, label: str) -> bool:
    return None not in await outcomes(upstream, label)


async def is_called(upstream: str, label: str) -> bool:
    return bool(await outcomes(upstream, label))


async def test_a_generation_above_the_maximum_duration_fails_with_timeout(own_redis: EmbeddedRedis, sim: str) -> None:
    """Independent of the upstream's behaviour during the call; its connection is closed. The time of waiting does not
    count."""

    async def too_long(label: str, directive: str) -> None:
        said = await ask(api, label, length=1000, speed=50, more=directive)
        frames = await api.events(said.gid)
        assert frames[-1].event == "failed"
        assert frames[-1].json["error"]["code"] == "timeout"
        generation = await api.get(said.gid)
        assert (generation["status"], generation["error"]["code"]) == ("failed", "timeout")
        assert generation["ended_at"] - generation["created_at"] >= 1
        await wait_until(partial(upstream_is_disconnected, sim, label))

    async with gateway(own_redis.url, **QUICK) as api, worker(own_redis.url, sim, **QUICK, TOKENCAST_MAX_DURATION="1"):
        calls = [directive for name, directive in UPSTREAM_BEHAVIOURS.items() if name != "refuses"]
        await gather(*(too_long(f"too-long-{n}", directive) for n, directive in enumerate(calls)))


async def test_a_generation_that_waits_longer_than_its_queue_timeout_fails(own_redis: EmbeddedRedis, sim: str) -> None:
    """With the error of the upstream that refused it, or as `queue_timeout` if no worker ever had it."""
    timeout = {"tokencast": {"queue_timeout": 1}}
    async with gateway(own_redis.url, **QUICK) as api:
        unseen = await api.create({**prompt("unseen", seed=7, length=5, speed=50), **timeout})
        assert (await api.ended(unseen["id"]))["error"]["code"] == "queue_timeout"
        async with worker(own_redis.url, sim, **QUICK):
            body = prompt("refused", seed=7, length=5, speed=50, more="fault=429")
            refused = await api.create({**body, **timeout})
            frames = await api.events(refused["id"])
            assert [frame.event for frame in frames[:2]] == ["created", "waiting"]
            assert (frames[1].json["reason"], frames[-1].event) == ("upstream_busy", "failed")
            assert (await api.get(refused["id"]))["error"]["code"] == "upstream_rate_limited"
        assert not await is_called(sim, "unseen")


async def test_a_cancel_before_any_worker_has_the_generation(own_redis: EmbeddedRedis, sim: str) -> None:
    """The generation ends immediately, and the upstream is never called for it."""
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


@pytest.mark.parametrize("directive", UPSTREAM_BEHAVIOURS.values(), ids=UPSTREAM_BEHAVIOURS.keys())
async def test_a_cancel_while_the_upstream_is_called(
    sim: str, api: Gateway, running_worker: None, directive: str, request: pytest.FixtureRequest
) -> None:
    """All subscribers see it, the text so far is kept, and the upstream's connection is closed."""
    label = "cancelled-" + request.node.callspec.id.replace(" ", "-")
    said = await ask(api, label, length=1000, speed=50, more=directive)
    async with client() as http, audience(http, lambda: api.url, said) as people:
        await wait_until(partial(is_called, sim, label))
        if directive in ("", UPSTREAM_BEHAVIOURS["idles"], UPSTREAM_BEHAVIOURS["sends only comments"]):
            await people.has_text()
        answer = await api.http.post(f"/v1/generations/{said.gid}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert await people.ending() == "cancelled"
        assert people.resets == 0
        shown = {one.shown.text for one in (*people.native, *people.completions)}
    await wait_until(partial(upstream_is_disconnected, sim, label))
    generation = await api.get(said.gid)
    assert (generation["status"], {generation["text"]}) == ("cancelled", shown)
    assert (generation["usage"] is None) == (generation["attempt"] == 0)
    tokens = generation["usage"]["completion_tokens"] if generation["usage"] else 0
    assert generation["text"] == "".join(pieces(7, 1000)[:tokens])


@pytest.fixture(scope="module")
async def running_worker(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[None, None]:
    async with worker(redis.url, sim, **QUICK):
        yield


async def test_a_cancel_after_the_end_changes_nothing(sim: str, api: Gateway, running_worker: None) -> None:
    said = await ask(api, "cancelled-after", length=5)
    async with client() as http, audience(http, lambda: api.url, said) as people:
        assert await people.ending() == "completed"
        for _ in range(2):
            answer = await api.http.post(f"/v1/generations/{said.gid}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert (await api.events(said.gid))[-1].event == "completed"
    assert await outcomes(sim, "cancelled-after") == ["completed"]

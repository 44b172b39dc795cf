"""Enqueue → worker → Redis → several subscribers, with a real gateway, worker, upstream, Redis, and HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import aclosing

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import (
    Gateway,
    gateway,
    gather,
    request_body,
    service,
    texts,
    upstream_calls,
    upstream_sim,
    wait_until,
    worker,
)
from worker.simulator.text import pieces

CANARY = "the canary sings at dawn"


async def test_ten_subscribers_of_a_real_generation(running: Gateway) -> None:
    """They join at ten different moments, the last one after the end; all read the complete text of the upstream."""
    generation = await running.create(request_body("[[sim seed=7 length=60 speed=120]]", model="sim"))
    readers = [asyncio.create_task(running.events(generation["id"]))]
    async with aclosing(running.follow(generation["id"])) as pace:
        async for frame in pace:
            if frame.event == "chunk" and len(readers) < 9 and frame.json["choices"]:
                readers.append(asyncio.create_task(running.events(generation["id"])))
    readers.append(asyncio.create_task(running.events(generation["id"])))
    streams = await gather(*readers)
    assert len(streams) == 10
    assert all(stream == streams[0] for stream in streams)
    assert texts(streams[0]) == "".join(pieces(7, 60))
    assert [frame.event for frame in streams[0]][:2] == ["created", "started"]
    assert streams[0][-1].event == "completed"
    stored = await running.get(generation["id"])
    assert stored["text"] == "".join(pieces(7, 60))
    assert stored["usage"]["completion_tokens"] == 60
    assert stored["created_at"] <= stored["started_at"] <= stored["first_token_at"] <= stored["ended_at"]


async def test_the_upstream_is_called_once_for_all_subscribers(running: Gateway, sim: str) -> None:
    body = request_body("[[sim label=once length=30 speed=0]]", model="sim")
    headers = {"idempotency-key": "once"}
    created = await gather(*(running.create(body, **headers) for _ in range(20)))
    assert len({generation["id"] for generation in created}) == 1
    streams = await gather(*(running.events(created[0]["id"]) for _ in range(20)))
    assert len({texts(stream) for stream in streams}) == 1
    assert len(await upstream_calls(sim, "once")) == 1


async def test_a_failure_of_the_upstream_reaches_subscribers(running: Gateway) -> None:
    generation = await running.create(request_body("[[sim fault=truncate at=5 speed=0]]", model="sim"))
    frames = await running.events(generation["id"])
    assert frames[-1].event == "failed"
    assert frames[-1].json["error"]["code"] == "upstream_truncated"
    stored = await running.get(generation["id"])
    assert (stored["status"], stored["error"]["code"]) == ("failed", "upstream_truncated")
    assert stored["text"] == texts(frames) != ""


async def test_a_cancellation_reaches_a_silent_upstream(running: Gateway, sim: str) -> None:
    """No text is appended any more, so the renewal of the lease brings the cancellation to the worker, which
    disconnects."""
    generation = await running.create(request_body("[[sim fault=stall at=3 speed=0 label=silent]]", model="sim"))
    async with aclosing(running.follow(generation["id"])) as stream:
        async for frame in stream:
            if len(texts([frame])) > 0:
                break
        await running.http.post(f"/v1/generations/{generation['id']}/cancel")
        assert [frame.event async for frame in stream][-1] == "cancelled"

    async def has_disconnected() -> bool:
        (call,) = await upstream_calls(sim, "silent")
        return call["outcome"] == "disconnected"

    await wait_until(has_disconnected)


async def test_more_generations_than_slots_all_complete(own_redis: EmbeddedRedis, sim: str) -> None:
    """Thirty generations for two workers of five slots; none is lost or runs twice."""
    async with (
        gateway(own_redis.url) as api,
        worker(own_redis.url, sim, TOKENCAST_SLOTS="5"),
        worker(own_redis.url, sim, TOKENCAST_SLOTS="5"),
    ):
        body = "[[sim seed={n} length=20 speed=200]]"
        made = await gather(*(api.create(request_body(body.format(n=n), model="sim")) for n in range(30)))
        for number, frames in enumerate(await gather(*(api.events(generation["id"]) for generation in made))):
            assert texts(frames) == "".join(pieces(number, 20))
            assert [frame.event for frame in frames].count("started") == 1
        async with connect(own_redis.url) as broker:
            assert await broker.queue.depth() == 0


async def test_the_model_selects_the_upstream(own_redis: EmbeddedRedis) -> None:
    """Each upstream has a key of its own and patterns of models; an unknown model is refused by the gateway."""
    async with upstream_sim("--require-key", "key-a") as a, upstream_sim("--require-key", "key-b") as b:
        upstreams = [
            {"name": "a", "base_url": a, "api_key_env": "KEY_A", "models": ["sim", "gabforge-coder"]},
            {"name": "b", "base_url": b, "api_key_env": "KEY_B", "models": ["sim-*"]},
        ]
        settings = {"TOKENCAST_UPSTREAMS": json.dumps(upstreams), "KEY_A": "key-a", "KEY_B": "key-b"}
        async with gateway(own_redis.url, **settings) as api:
            async with service("worker", REDIS_URL=own_redis.url, **settings) as process:
                await process.says("ready")
                listed = [model["id"] for model in (await api.http.get("/v1/models")).json()["data"]]
                assert listed[:2] == [
                    "sim",
                    "gabforge-coder",
                ]  # followed by the models of `sim-*` after the worker has listed them
                for model in ("sim", "sim-fast"):
                    generation = await api.create(request_body("hi", model=model))
                    assert (await api.events(generation["id"]))[-1].event == "completed"
                for url, model in ((a, "sim"), (b, "sim-fast")):
                    assert [call["model"] for call in await upstream_calls(url)] == [model]
            refused = await api.http.post("/v1/generations", json=request_body(model="llama"))
            assert refused.json()["error"]["code"] == "model_not_found"


async def test_models_are_listed_by_the_upstream_by_default(own_redis: EmbeddedRedis, sim: str) -> None:
    """With only an address configured, the list contains the models that the upstream lists."""
    async with gateway(own_redis.url, TOKENCAST_MODELS="*") as api:
        assert (await api.http.get("/v1/models")).json()["data"] == []
        async with worker(own_redis.url, sim):

            async def listed() -> list[str]:
                return [model["id"] for model in (await api.http.get("/v1/models")).json()["data"]]

            assert {"gabforge-coder", "sim", "sim-truncate"} <= set(await wait_until(listed))
        model = (await api.http.get("/v1/models/anything-else")).json()
        assert (model["id"], model["object"], model["owned_by"]) == ("anything-else", "model", "default")


async def test_a_prompt_is_in_no_log_and_no_queue_entry(own_redis: EmbeddedRedis, sim: str) -> None:
    """The upstream's output and its key are not logged either."""
    async with gateway(own_redis.url) as api:
        generation = await api.create(request_body(f"{CANARY} [[sim seed=3 speed=0]]", model="sim"))
        async with connect(own_redis.url) as broker:
            queue = broker.queue.redis
            for name in await queue.execute("KEYS", "*"):
                if b":m:" not in name and not name.endswith(
                    b":act"
                ):  # the request, and the activity with its first line
                    assert CANARY.encode() not in await queue.execute("DUMP", name), name
        async with worker(own_redis.url, sim, OPENAI_API_KEY="sk-canary") as process:
            assert (await api.events(generation["id"]))[-1].event == "completed"
            bad = await api.create(request_body(f"{CANARY} [[sim fault=401]]", model="sim"))
            assert (await api.events(bad["id"]))[-1].json["error"]["code"] == "upstream_auth"
            await api.http.post("/v1/chat/completions", content=f'{{"model": {CANARY}'.encode())
            await wait_until(lambda: bad["id"] in process.output)
        for output in (process.output, api.process.output):
            assert CANARY not in output
            assert "sk-canary" not in output
            assert "".join(pieces(3, 20)[:4]) not in output


async def test_a_stopping_worker_hands_over_without_loss(own_redis: EmbeddedRedis, sim: str) -> None:
    """At its second signal it hands the generation over; the next worker starts it again, and subscribers get
    `reset`."""
    async with gateway(own_redis.url) as api:
        async with worker(own_redis.url, sim) as first:
            generation = await api.create(request_body("[[sim seed=9 length=300 speed=100]]", model="sim"))
            async with aclosing(api.follow(generation["id"])) as stream:
                async for frame in stream:
                    if frame.event == "chunk" and texts([frame]):
                        break
                await first.stop()
                async with worker(own_redis.url, sim):
                    frames = [frame async for frame in stream]
        names = [frame.event for frame in frames]
        reset = names.index("reset")
        assert frames[reset].json["attempt"] == 2
        assert texts(frames[reset:]) == "".join(pieces(9, 300))
        assert names[-1] == "completed"


async def test_a_generation_of_a_killed_worker_starts_again(own_redis: EmbeddedRedis, sim: str) -> None:
    """Its lease expires, the reaper finds it, and another worker claims it."""
    lease = {"TOKENCAST_LEASE": "2"}
    async with gateway(own_redis.url, **lease) as api, worker(own_redis.url, sim, **lease) as doomed:
        generation = await api.create(request_body("[[sim seed=4 length=300 speed=100]]", model="sim"))
        async with aclosing(api.follow(generation["id"])) as stream:
            async for frame in stream:
                if frame.event == "chunk" and texts([frame]):
                    break
            doomed.send(signal.SIGKILL)
            async with worker(own_redis.url, sim, **lease):
                frames = [frame async for frame in stream]
    names = [frame.event for frame in frames]
    assert names.count("reset") == 1
    assert frames[names.index("reset")].json["reason"] == "worker_lost"
    assert texts(frames[names.index("reset") :]) == "".join(pieces(4, 300))
    assert names[-1] == "completed"


async def test_a_gateway_raises_its_limit_on_open_files(api: Gateway) -> None:
    """The soft limit on open files, usually 1,024, does not limit subscribers."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.prlimit(api.process.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard

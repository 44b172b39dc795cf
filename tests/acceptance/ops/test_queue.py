"""`/v1/queue` and `/v1/upstreams`: what waits and why, pauses, and limits at run time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import InvalidRequest, UpstreamNotFound
from tests.support import Gateway, gateway, gather, request_body, upstream_calls, upstream_sim, wait_until, worker

KEYS = ",".join(
    f"{name}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}{role}"
    for name, role in {"anna": "", "ben": "", "ops": ":operator"}.items()
)
ANNA, BEN, OPS = ({"authorization": f"Bearer key-{name}"} for name in ("anna", "ben", "ops"))
SLOW = "[[sim label=slow length=2000 speed=20]]"


@pytest.fixture
async def sim() -> AsyncGenerator[str, None]:
    """A simulated upstream for a single test, whose counts are those of the test."""
    async with upstream_sim() as url:
        yield url


@asynccontextmanager
async def deployment(redis_url: str, upstream: str, **more: str) -> AsyncGenerator[Gateway, None]:
    """A gateway and a worker with the same settings."""
    async with gateway(redis_url, **more) as api, worker(redis_url, upstream, **more):
        yield api


async def ask(api: Gateway, method: str, path: str, body: Any = None, **headers: str) -> Any:
    answer = await api.http.request(method, path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def queue_is(api: Gateway, **expected: Any) -> Any:
    """Wait until `/v1/queue` has these values; its reasons may be a second old."""

    async def look() -> Any:
        queue = await ask(api, "GET", "/v1/queue")
        return queue if {name: queue[name] for name in expected} == expected else None

    return await wait_until(look, f"a queue with {expected}")


async def in_flight(sim: str) -> dict[str, int]:
    async with httpx2.AsyncClient() as http:
        return (await http.get(f"{sim.removesuffix('/v1')}/sim/counts")).json()


async def running(sim: str, number: int) -> None:
    """Wait until the upstream has this number of calls."""

    async def look() -> bool:
        return (await in_flight(sim))["in_flight"] == number

    await wait_until(look, f"{number} calls in flight")


async def cancel(api: Gateway, *generations: dict[str, Any]) -> None:
    for generation in generations:
        await ask(api, "POST", f"/v1/generations/{generation['id']}/cancel")


# --- depth


async def test_the_depth_by_priority_and_reason(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api:
        empty = await ask(api, "GET", "/v1/queue")
        assert empty == {
            "object": "queue",
            "depth": 0,
            "by_priority": {},
            "by_reason": {},
            "levels": [],
            "paused": [],
        }
        for priority in (1, 1, 4):
            await api.create(request_body(tokencast={"priority": priority}))
        await api.create(request_body(tokencast={"delay_seconds": 600}))
        queue = await ask(api, "GET", "/v1/queue")
    assert queue["depth"] == 4
    assert queue["by_priority"] == {"1": 2, "4": 1}
    assert queue["by_reason"] == {"queued": 3, "scheduled": 1}
    assert [(one["upstreams"], one["priority"], one["waiting"]) for one in queue["levels"]] == [
        (["default"], 1, 2),
        (["default"], 4, 1),
    ]


async def test_generations_above_an_upstreams_limit_wait_for_it(own_redis: EmbeddedRedis, sim: str) -> None:
    async with deployment(own_redis.url, sim, TOKENCAST_UPSTREAM_CONCURRENCY="2") as api:
        started = [await api.create(request_body(SLOW, "sim")) for _ in range(2)]
        await running(sim, 2)
        waiting = [await api.create(request_body("[[sim length=1]]", "sim")) for _ in range(3)]
        await queue_is(api, depth=3, by_reason={"upstream_limit": 3})

        async def reported() -> bool:
            [upstream] = (await ask(api, "GET", "/v1/upstreams"))["data"]
            return (upstream["max_concurrency"], upstream["in_flight"], upstream["waiting"]) == (2, 2, 3)

        await wait_until(reported)
        await cancel(api, *started)
        for generation in waiting:
            assert (await api.ended(generation["id"]))["status"] == "completed"
        assert (await in_flight(sim))["max_in_flight"] == 2


# --- pauses


@pytest.mark.parametrize(
    ("body", "shown"),
    [({}, "all"), ({"upstream": "default"}, "upstream default"), ({"tenant": "default"}, "tenant default")],
)
async def test_nothing_starts_while_paused(
    own_redis: EmbeddedRedis, sim: str, body: dict[str, str], shown: str
) -> None:
    async with deployment(own_redis.url, sim) as api:
        before = await api.create(request_body(SLOW, "sim"))
        await running(sim, 1)
        paused = await ask(api, "POST", "/v1/queue/pause", body)
        assert paused["paused"] == [shown]
        waiting = await api.create(request_body("[[sim label=held length=1]]", "sim"))

        async def explained() -> bool:
            return (await api.get(waiting["id"]))["queue"]["reason"] == "paused"

        await wait_until(explained)
        assert (await api.get(waiting["id"]))["queue"]["position"] is None
        assert await upstream_calls(sim, "held") == []
        assert (await api.get(before["id"]))["status"] == "in_progress"
        resumed = await ask(api, "POST", "/v1/queue/resume", body)
        assert resumed["paused"] == []
        assert (await api.ended(waiting["id"]))["status"] == "completed"
        await cancel(api, before)


async def test_a_paused_tenant_does_not_hold_up_another(own_redis: EmbeddedRedis, sim: str) -> None:
    async with deployment(own_redis.url, sim, TOKENCAST_API_KEYS=KEYS) as api:
        await ask(api, "POST", "/v1/queue/pause", {"tenant": "anna"}, **OPS)
        body = request_body("[[sim length=1]]", "sim")
        held = (await api.create(body, **ANNA))["id"]
        other = (await api.create(body, **BEN))["id"]

        async def status(gid: str) -> str:
            return (await ask(api, "GET", f"/v1/generations/{gid}", **OPS))["status"]

        async def completed(gid: str) -> bool:
            return await status(gid) == "completed"

        await wait_until(lambda: completed(other))
        assert await status(held) == "queued"
        await ask(api, "POST", "/v1/queue/resume", {"tenant": "anna"}, **OPS)
        await wait_until(lambda: completed(held))


async def test_generations_of_a_paused_tenant_are_counted_as_paused(own_redis: EmbeddedRedis) -> None:
    """Also without a worker, in the response to the pause, and in the metrics. Those of others are not."""
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as api:
        for headers in (ANNA, ANNA, BEN):
            await api.create(request_body(model="sim"), **headers)
        assert (await ask(api, "GET", "/v1/queue", **OPS))["by_reason"] == {"queued": 3}
        paused = await ask(api, "POST", "/v1/queue/pause", {"tenant": "anna"}, **OPS)
        assert (paused["depth"], paused["by_priority"]) == (3, {"3": 3})
        assert paused["by_reason"] == {"paused": 2, "queued": 1}
        assert [(one["reason"], one["waiting"]) for one in paused["levels"]] == [("paused", 2), ("queued", 1)]
        [upstream] = (await ask(api, "GET", "/v1/upstreams", **OPS))["data"]
        assert upstream["waiting"] == 3
        metrics = (await api.http.get("/metrics", headers=OPS)).text
        assert 'tokencast_queue_waiting{priority="3",reason="paused"} 2' in metrics
        assert 'tokencast_queue_waiting{priority="3",reason="queued"} 1' in metrics
        resumed = await ask(api, "POST", "/v1/queue/resume", {"tenant": "anna"}, **OPS)
        assert resumed["by_reason"] == {"queued": 3}


async def test_generations_of_a_tenant_at_its_limit_are_counted_so(own_redis: EmbeddedRedis, sim: str) -> None:
    """A pause takes precedence, as in the generations themselves."""
    limits = {"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_TENANT_RUNNING": "1", "TOKENCAST_UPSTREAM_CONCURRENCY": "2"}
    async with deployment(own_redis.url, sim, **limits) as api:
        ids = [(await api.create(request_body(SLOW, "sim"), **ANNA))["id"] for _ in range(4)]
        await running(sim, 1)

        async def counted(expected: dict[str, int]) -> bool:
            return (await ask(api, "GET", "/v1/queue", **OPS))["by_reason"] == expected

        await wait_until(lambda: counted({"tenant_limit": 3}))
        generations = [await ask(api, "GET", f"/v1/generations/{gid}", **OPS) for gid in ids]
        assert [one["queue"]["reason"] for one in generations if one["queue"]] == ["tenant_limit"] * 3
        await ask(api, "POST", "/v1/queue/pause", {"tenant": "anna"}, **OPS)
        assert await counted({"paused": 3})


async def test_an_empty_body_pauses_everything(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api:
        assert (await api.http.post("/v1/queue/pause")).json()["paused"] == ["all"]
        assert (await api.http.post("/v1/queue/resume")).json()["paused"] == []


# --- limits


async def test_a_lower_limit_applies_to_running_workers(own_redis: EmbeddedRedis, sim: str) -> None:
    """Calls under way continue. The next ones start when there are fewer than the new limit."""
    async with deployment(own_redis.url, sim, TOKENCAST_UPSTREAM_CONCURRENCY="4") as api:
        started = [await api.create(request_body(SLOW, "sim")) for _ in range(4)]
        await running(sim, 4)
        changed = await ask(api, "PATCH", "/v1/upstreams/default", {"max_concurrency": 1})
        assert (changed["max_concurrency"], changed["in_flight"]) == (1, 4)
        waiting = [await api.create(request_body("[[sim length=3 speed=100]]", "sim")) for _ in range(5)]
        await queue_is(api, by_reason={"upstream_limit": 5})
        assert (await in_flight(sim))["in_flight"] == 4
        await ask(api, "POST", "/v1/queue/pause")
        await cancel(api, *started)
        await running(sim, 0)
        async with httpx2.AsyncClient() as http:
            await http.delete(f"{sim.removesuffix('/v1')}/sim/calls")
        await ask(api, "POST", "/v1/queue/resume")
        await gather(*(api.ended(generation["id"]) for generation in waiting))
        counts = await in_flight(sim)
        assert (counts["calls"], counts["max_in_flight"]) == (5, 1)


async def test_a_higher_limit_applies_to_running_workers(own_redis: EmbeddedRedis, sim: str) -> None:
    async with deployment(own_redis.url, sim, TOKENCAST_UPSTREAM_CONCURRENCY="1") as api:
        started = [await api.create(request_body(SLOW, "sim")) for _ in range(3)]
        await queue_is(api, by_reason={"upstream_limit": 2})
        await ask(api, "PATCH", "/v1/upstreams/default", {"max_concurrency": 3})
        await running(sim, 3)
        back = await ask(api, "PATCH", "/v1/upstreams/default", {"max_concurrency": None})
        assert back["max_concurrency"] == 1
        await cancel(api, *started)


async def test_an_upstream_is_paused_by_a_patch(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url, TOKENCAST_UPSTREAM_RPM="600") as api:
        paused = await ask(api, "PATCH", "/v1/upstreams/default", {"paused": True, "tokens_per_minute": 9000})
        assert (paused["paused"], paused["tokens_per_minute"]) == (True, 9000)
        assert (await ask(api, "GET", "/v1/queue"))["paused"] == ["upstream default"]
        assert (await ask(api, "GET", "/v1/upstreams"))["data"] == [paused]
        resumed = await ask(api, "PATCH", "/v1/upstreams/default", {"paused": False})
        assert resumed == {**paused, "paused": False}


# --- several upstreams


async def test_another_upstream_is_asked_while_one_is_busy(own_redis: EmbeddedRedis, sim: str) -> None:
    """The first upstream refuses every call for an hour. The generation completes at the second one."""
    async with upstream_sim("--quota", '{"concurrency": 0, "retry_after": 3600}') as full:
        entries = [
            {"name": name, "base_url": url, "api_key_env": None} for name, url in (("full", full), ("free", sim))
        ]
        upstreams = {"TOKENCAST_UPSTREAMS": json.dumps(entries)}
        async with deployment(own_redis.url, sim, **upstreams) as api:
            created = await api.create(request_body("[[sim length=1]]", "sim"))
            ended = await api.ended(created["id"])
            assert (ended["status"], ended["upstream"], ended["attempt"]) == ("completed", "free", 1)
            assert (await in_flight(full))["refused"] == 1

            async def is_known() -> tuple[Any, Any] | None:  # the state is read once a second
                busy, free = (await ask(api, "GET", "/v1/upstreams"))["data"]
                return (busy, free) if busy["refused"] else None

            busy, free = await wait_until(is_known)
            assert (busy["name"], busy["refused"], free["refused"]) == ("full", 1, 0)
            assert busy["retry_at"] > time.time() + 3000


# --- refusals


CHANGES = (("POST", "/v1/queue/pause"), ("POST", "/v1/queue/resume"), ("PATCH", "/v1/upstreams/default"))


async def test_changes_need_an_operator(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=KEYS) as api:
        for method, path in CHANGES:
            refused = await api.http.request(method, path, json={}, headers=ANNA)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operator_required")
            assert (await api.http.request(method, path, json={})).status_code == 401
            await ask(api, method, path, {}, **OPS)
        for path in ("/v1/queue", "/v1/upstreams"):
            await ask(api, "GET", path, **ANNA)
            assert (await api.http.get(path)).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/v1/upstreams/nowhere", {"max_concurrency": 1}),
        ("PATCH", "/v1/upstreams/nowhere", {"paused": True}),
        ("POST", "/v1/queue/pause", {"upstream": "nowhere"}),
        ("POST", "/v1/queue/resume", {"upstream": ""}),
    ],
)
async def test_an_unknown_upstream(api: Gateway, method: str, path: str, body: dict[str, Any]) -> None:
    answer = await api.http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "upstream_not_found")
    assert (await ask(api, "GET", "/v1/queue"))["paused"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "code"),
    [
        ("PATCH", "/v1/upstreams/default", b'{"max_concurrency": 0}', "max_concurrency", "invalid_type"),
        ("PATCH", "/v1/upstreams/default", b'{"max_concurrency": true}', "max_concurrency", "invalid_type"),
        ("PATCH", "/v1/upstreams/default", b'{"max_concurency": 1}', None, "invalid_type"),
        ("PATCH", "/v1/upstreams/default", b'{"paused": null}', "paused", "invalid_type"),
        ("PATCH", "/v1/upstreams/default", b"[]", None, "invalid_type"),
        ("PATCH", "/v1/upstreams/default", b"", None, "invalid_json"),
        ("POST", "/v1/queue/pause", b'{"upstreem": "default"}', None, "invalid_type"),
        ("POST", "/v1/queue/pause", b'{"tenant": ""}', "tenant", "invalid_type"),
        ("POST", "/v1/queue/pause", b"{", None, "invalid_json"),
        ("POST", "/v1/queue/resume", b'{"tenant": 7}', "tenant", "invalid_type"),
        ("POST", "/v1/queue/pause", b'{"tenant": null}', "tenant", "invalid_type"),
        ("POST", "/v1/queue/resume", b'{"upstream": null}', "upstream", "invalid_type"),
        ("POST", "/v1/queue/pause?upstream=default", b"", "upstream", "unknown_parameter"),
        ("POST", "/v1/queue/resume?tenant=anna", b"{}", "tenant", "unknown_parameter"),
        ("PATCH", "/v1/upstreams/default?paused=true", b"{}", "paused", "unknown_parameter"),
        ("GET", "/v1/queue?upstream=default", b"", "upstream", "unknown_parameter"),
        ("GET", "/v1/upstreams?name=default", b"", "name", "unknown_parameter"),
    ],
)
async def test_a_malformed_request_changes_nothing(
    api: Gateway, method: str, path: str, body: bytes, param: str | None, code: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = await api.http.request(method, path, content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
    assert (await ask(api, "GET", "/v1/queue"))["paused"] == []


# --- Python


async def test_the_same_from_python(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url) as broker:
        await broker.enqueue(request_body(model="gpt-4o-mini"))
        assert (await broker.queue_state()).by_priority == {"3": 1}
        assert (await broker.pause(upstream="default", tenant="anna")).paused == ["tenant anna", "upstream default"]
        assert (await broker.resume(tenant="anna")).paused == ["upstream default"]
        changed = await broker.set_upstream_limits("default", max_concurrency=7)
        assert (changed.max_concurrency, changed.paused, changed.waiting) == (7, True, 1)
        assert await broker.upstreams() == [changed]
        for limits, error in (({"max": 1}, InvalidRequest), ({"max_concurrency": 0}, InvalidRequest)):
            with pytest.raises(error):
                await broker.set_upstream_limits("default", **limits)
        with pytest.raises(UpstreamNotFound):
            await broker.upstream("nowhere")

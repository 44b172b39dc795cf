"""`/v1/history` and `/v1/workers` of a real deployment: two workers, one of which is killed and one drained."""

from __future__ import annotations

import hashlib
import signal
from typing import Any

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.support import Gateway, gateway, request_body, wait_until, worker

KEYS = ",".join(
    f"{name}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}{role}"
    for name, role in {"anna": "", "ben": "", "ops": ":operator"}.items()
)
ANNA, BEN, OPS = ({"authorization": f"Bearer key-{name}"} for name in ("anna", "ben", "ops"))
LONG = "[[sim length=100000 speed=100]]"
FAILING = "[[sim length=20 speed=0 fault=truncate at=5]]"


async def ask(api: Gateway, path: str, headers: dict[str, str], method: str = "GET") -> Any:
    answer = await api.http.request(method, path, headers=headers)
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


async def workers(api: Gateway) -> list[dict[str, Any]]:
    return (await ask(api, "/v1/workers", OPS))["data"]


async def test_a_deployment_in_operation(own_redis: EmbeddedRedis, sim: str) -> None:
    settings = {"TOKENCAST_API_KEYS": KEYS, "TOKENCAST_LEASE": "2", "TOKENCAST_SLOTS": "7"}
    async with gateway(own_redis.url, **settings) as api, worker(own_redis.url, sim, **settings) as first:
        for path, method in (("/v1/workers", "GET"), ("/v1/workers/x/drain", "POST")):
            answer = await api.http.request(method, path, headers=ANNA)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "operator_required")
        answer = await api.http.post("/v1/workers/x/drain", headers=OPS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "worker_not_found")

        # A generation that outlives two workers, one that completes and one that fails.
        long = (await api.create(request_body(LONG, model="gabforge-coder"), **ANNA))["id"]
        done = (await api.create(request_body("[[sim length=20 speed=0]]", model="sim"), **ANNA))["id"]
        failing = (await api.create(request_body(FAILING, model="gabforge-coder"), **BEN))["id"]

        async def runs_it() -> dict[str, Any] | None:
            return next((one for one in await workers(api) if long in str(one["generations"])), None)

        lost = await wait_until(runs_it)
        assert (lost["state"], lost["slots"], lost["upstreams"]) == ("running", 7, ["default"])
        assert lost["pid"] == first.process.pid
        run = next(one for one in lost["generations"] if one["id"] == long)
        assert (run["tenant"], run["model"], run["upstream"]) == ("anna", "gabforge-coder", "default")

        async def ended() -> bool:
            answers = [await api.http.get(f"/v1/generations/{gid}", headers=OPS) for gid in (done, failing)]
            return [one.json()["status"] for one in answers] == ["completed", "failed"]

        await wait_until(ended)
        await wait_until(lambda: _has(api, OPS, created=3, completed=1, failed=1, started=3))

        async def all_have_tokens() -> bool:
            return (await ask(api, "/v1/history", OPS))["total"]["first_token"]["count"] == 3

        await wait_until(all_have_tokens)
        await _check_figures(api, done, failing)

        first.send(signal.SIGKILL)
        await first.wait()
        async with connect(own_redis.url) as broker:  # its record expires after 15 s
            await broker.queue.redis.execute("DEL", keys.worker(lost["id"]))
        async with worker(own_redis.url, sim, **settings) as second:
            other = await wait_until(runs_it)
            assert {(one["id"], one["state"]) for one in await workers(api)} == {
                (other["id"], "running"),
                (lost["id"], "lost"),
            }
            await _old_worker(own_redis.url, api)
            answer = await api.http.post(f"/v1/workers/{lost['id']}/drain", headers=OPS)
            assert answer.status_code == 404
            drained = await ask(api, f"/v1/workers/{other['id']}/drain", OPS, "POST")
            assert drained["state"] == "draining"
            await second.says("stopping: 1 generations are running")
            assert [one["state"] for one in await workers(api) if one["id"] == other["id"]] == ["draining"]
            await api.http.post(f"/v1/generations/{long}/cancel", headers=ANNA)
            assert await second.wait() == 0
        assert other["id"] not in {one["id"] for one in await workers(api)}
        total = await wait_until(lambda: _has(api, ANNA, cancelled=1))
        assert (total["created"], total["started"]) == (2, 3)


async def _has(api: Gateway, key: dict[str, str], **expected: int) -> Any:
    total = (await ask(api, "/v1/history", key))["total"]
    return total if {name: total[name] for name in expected} == expected else None


async def _check_figures(api: Gateway, done: str, failing: str) -> None:
    history = await ask(api, "/v1/history?minutes=5", OPS)
    assert len(history["data"]) == 5
    assert [one["at"] % 60 for one in history["data"]] == [0] * 5
    total = history["total"]
    assert (total["created"], total["started"]) == (3, 3)
    assert total["tokens"] >= 25
    assert total["first_token"]["count"] == 3
    assert 0 < total["first_token"]["p50"] <= total["first_token"]["p95"]
    assert (history["models"], history["upstreams"]) == (["gabforge-coder", "sim"], ["default"])
    [error] = history["errors"]
    assert (error["code"], error["model"], error["upstream"]) == ("upstream_truncated", "gabforge-coder", "default")
    assert (error["failed"], error["returned"], error["sample"]) == (1, 0, failing)
    of_anna = await ask(api, "/v1/history?model=sim", ANNA)
    assert (of_anna["total"]["completed"], of_anna["total"]["tokens"], of_anna["errors"]) == (1, 20, [])
    assert (await ask(api, "/v1/history?tenant=ben", OPS))["total"]["failed"] == 1
    assert (await ask(api, "/v1/history?upstream=default", BEN))["total"]["created"] is None
    assert (await api.http.get("/v1/history?tenant=ben", headers=ANNA)).status_code == 403
    for query in ("minutes=0", "minutes=121", "minute=1"):
        assert (await api.http.get(f"/v1/history?{query}", headers=ANNA)).status_code == 400
    await api.http.delete(f"/v1/generations/{done}", headers=ANNA)
    assert (await ask(api, "/v1/history", ANNA))["total"]["completed"] == 1


async def _old_worker(redis_url: str, api: Gateway) -> None:
    """A worker of 0.2.0 tells less of itself."""
    async with connect(redis_url) as broker:
        redis, name = broker.queue.redis, "old-1-abc"
        now = int(await broker.history.clock.now() * 1000)
        await redis.execute("ZADD", keys.WORKERS, now, name)
        fields = ("host", "old", "pid", 1, "slots", 100, "running", 2, "version", "0.2.0")
        await redis.execute("HSET", keys.worker(name), *fields)
        await redis.execute("EXPIRE", keys.worker(name), 60)
        [old] = [one for one in await workers(api) if one["id"] == name]
        assert (old["state"], old["slots"], old["running"], old["generations"]) == ("running", 100, 2, [])
        assert (old["upstreams"], old["started_at"]) == (None, None)
        assert (await api.http.post(f"/v1/workers/{name}/drain", headers=OPS)).status_code == 400
        await redis.pipeline([("DEL", keys.worker(name)), ("ZREM", keys.WORKERS, name)])

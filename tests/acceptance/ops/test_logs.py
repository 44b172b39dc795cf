"""JSON logs, as a machine reads them; and readiness while Redis hangs."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Service, gateway, request_body, wait_until, worker


def lines(process: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.lines]


async def test_a_generation_is_found_by_its_id_and_by_its_requests(own_redis: EmbeddedRedis, sim: str) -> None:
    json_too = {"TOKENCAST_LOG": "json"}
    async with gateway(own_redis.url, **json_too) as api, worker(own_redis.url, sim, **json_too) as process:
        response = await api.http.post("/v1/generations", json=request_body("one two", model="sim-fast"))
        gid, request_id = response.json()["id"], response.headers["x-request-id"]
        await api.ended(gid)
        refused = await api.http.get(f"/v1/generations/{gid}/events?after=x")

        def told(by: Service) -> list[dict[str, Any]]:
            return [line for line in lines(by) if line.get("generation_id") == gid]

        await wait_until(lambda: len(told(process)) == 2)  # its attempt, its end
        await wait_until(lambda: len(told(api.process)) == 2)
        accepted, refusal = told(api.process)
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines(process))
    assert accepted["request_id"] == request_id
    assert refusal["request_id"] == refused.headers["x-request-id"] != request_id
    assert (refusal["level"], refusal["status"], refusal["method"]) == ("warning", 400, "GET")
    assert refusal["path"] == f"/v1/generations/{gid}/events"


async def test_a_gateway_whose_redis_hangs_says_that_it_is_not_ready(own_redis: EmbeddedRedis) -> None:
    """A probe waits three seconds (docker-compose.yml), a command to Redis five."""
    async with gateway(own_redis.url) as api:
        assert (await api.http.get("/readyz")).status_code == 200
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            answer = await api.http.get("/readyz", timeout=4.5)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")

        async def ready() -> bool:
            return (await api.http.get("/readyz")).status_code == 200

        await wait_until(ready)

"""Machine-readable JSON logs; and readiness while Redis hangs."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Service, gateway, request_body, wait_until, worker


def lines(process: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.lines]


async def test_log_lines_contain_generation_and_request_ids(own_redis: EmbeddedRedis, sim: str) -> None:
    json_logs = {"TOKENCAST_LOG": "json"}
    async with gateway(own_redis.url, **json_logs) as api, worker(own_redis.url, sim, **json_logs) as process:
        response = await api.http.post("/v1/generations", json=request_body("one two", model="sim-fast"))
        gid, request_id = response.json()["id"], response.headers["x-request-id"]
        await api.ended(gid)
        refused = await api.http.get(f"/v1/generations/{gid}/events?after=x")

        def lines_of_generation(by: Service) -> list[dict[str, Any]]:
            return [line for line in lines(by) if line.get("generation_id") == gid]

        await wait_until(lambda: len(lines_of_generation(process)) == 2)  # its attempt and its end
        await wait_until(lambda: len(lines_of_generation(api.process)) == 2)
        accepted, refusal = lines_of_generation(api.process)
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines(process))
    assert accepted["request_id"] == request_id
    assert refusal["request_id"] == refused.headers["x-request-id"] != request_id
    assert (refusal["level"], refusal["status"], refusal["method"]) == ("warning", 400, "GET")
    assert refusal["path"] == f"/v1/generations/{gid}/events"


async def test_a_gateway_is_not_ready_while_redis_hangs(own_redis: EmbeddedRedis) -> None:
    """A probe has a timeout of three seconds (docker-compose.yml), a command to Redis one of five."""
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

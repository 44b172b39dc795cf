"""Machine-readable JSON logs; and readiness while Redis hangs."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.support import Service, clean_environment, gateway, gather, request_body, wait_until, worker


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
        began, completed = lines_of_generation(process)
        accepted, refusal = lines_of_generation(api.process)
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines(process))
    assert (accepted["request_id"], accepted["model"], accepted["tenant"]) == (request_id, "sim-fast", "default")
    assert (began["model"], began["upstream"], began["attempt"]) == ("sim-fast", "default", 1)
    assert (completed["level"], completed["attempt"]) == ("info", 1)
    assert completed["completion_tokens"] > 0
    assert completed["seconds"] >= completed["first_token_seconds"] >= 0
    assert refusal["request_id"] == refused.headers["x-request-id"] != request_id
    assert (refusal["level"], refusal["status"], refusal["method"]) == ("warning", 400, "GET")
    assert refusal["path"] == f"/v1/generations/{gid}/events"


async def test_a_failure_is_a_warning_with_its_cause(own_redis: EmbeddedRedis, sim: str) -> None:
    """Of a call that could not be made, and of one that broke off; and an upstream is tried when a worker starts."""
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    entries = [
        {"name": "there", "base_url": sim, "models": ["sim"]},
        {"name": "gone", "base_url": nobody, "models": ["gone"]},
    ]
    shared = {"TOKENCAST_LOG": "json", "TOKENCAST_UPSTREAMS": json.dumps(entries)}
    async with gateway(own_redis.url, **shared) as api, worker(own_redis.url, sim, **shared) as process:
        gone = await api.create(request_body("Hello.", model="gone"))
        cut = await api.create(request_body("Hello. [[sim fault=truncate]]", model="sim"))

        def found(gid: str, code: str) -> list[dict[str, Any]]:
            ours = [line for line in lines(process) if line.get("generation_id") == gid and line.get("code") == code]
            return [line for line in ours if line["level"] == "warning"]

        returned = (await wait_until(lambda: found(gone["id"], "upstream_unreachable")))[0]
        failed = (await wait_until(lambda: found(cut["id"], "upstream_truncated")))[0]
        await process.says(f"upstream gone at {nobody}: it refuses connections")
        assert "Hello." not in process.output
    assert (returned["cause"], returned["upstream"], returned["model"]) == ("refused", "gone", "gone")
    assert returned["message"].endswith(": upstream_unreachable, waits")
    assert (failed["upstream"], failed["attempt"]) == ("there", 1)
    assert failed["message"] == f"{cut['id']}: failed (upstream_truncated)"


async def test_upstreams_can_be_checked_without_a_completion(sim: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    there = {"name": "there", "base_url": sim, "models": ["sim", "no-such"]}
    gone = {"name": "gone", "base_url": nobody, "api_key_env": None}
    without = {"name": "without", "base_url": sim, "api_key_env": "A_KEY"}

    async def check(*entries: dict[str, Any]) -> tuple[int, list[str]]:
        settings = clean_environment(TOKENCAST_UPSTREAMS=json.dumps(entries), OPENAI_API_KEY="hunter2")
        process = await Service.start("worker", "--check-upstreams", environment=settings)
        return await process.wait(), process.lines

    (good, said), (bad, complained) = await gather(check(there), check(gone, there, without))
    assert (good, bad, len(said), len(complained)) == (0, 1, 1, 3)
    assert re.fullmatch(rf"there at {sim}: ok, \d+ models in \d+\.\d\d s; not listed: no-such", said[0])
    assert complained[0] == f"gone at {nobody}: it refuses connections"
    assert complained[2] == f"without at {sim}: A_KEY is not set"


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

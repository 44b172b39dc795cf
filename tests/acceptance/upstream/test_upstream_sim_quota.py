"""The simulated upstream's quota and outages: what it admits, what it says about it, and that it counts by itself."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import fields
from typing import Any

import httpx2
import openai
import pytest

from tests.acceptance.upstream.sim_process import ROOT, Answer, ask, body, calls, simulator, socket_to
from tests.support import DEADLINE, wait_until
from worker import simulator as package
from worker.simulator.calls import Counts
from worker.simulator.quota import Quota, duration


class Control:
    """The simulator's control routes."""

    def __init__(self, url: str, http: httpx2.AsyncClient) -> None:
        self.url = url
        self._origin = url.removesuffix("/v1")
        self._http = http

    async def set(self, method: str = "PUT", **quota: Any) -> httpx2.Response:
        return await self._http.request(method, self._origin + "/sim/quota", json=quota)

    async def quota(self) -> dict[str, Any]:
        return (await self._http.get(self._origin + "/sim/quota")).json()

    async def counts(self) -> dict[str, int]:
        return (await self._http.get(self._origin + "/sim/counts")).json()

    async def reset(self) -> None:
        await self._http.delete(self._origin + "/sim/calls")


@pytest.fixture
async def sim(url: str) -> AsyncIterator[Control]:
    async with httpx2.AsyncClient(timeout=DEADLINE) as http:
        control = Control(url, http)
        await control.set()
        await control.reset()
        yield control


async def test_more_calls_than_the_quota_admits_get_429(sim: Control) -> None:
    await sim.set(concurrency=2, retry_after=3, retry_after_ms=2500)
    async with AsyncExitStack() as held:
        for _ in range(2):
            reader, _ = await held.enter_async_context(socket_to(sim.url, body("fault=stall")))
            await reader.readuntil(b"\r\n\r\n")
        refused = await ask(sim.url, "label=refused")
        assert (refused.status, refused.headers["retry-after"], refused.headers["retry-after-ms"]) == (429, "3", "2500")
        assert await sim.counts() == {"calls": 3, "refused": 1, "unavailable": 0, "in_flight": 2, "max_in_flight": 2}
        [call] = await calls(sim.url, "refused")
        assert call["outcome"] == "fault:429"

    async def admitted() -> Answer | None:
        answer = await ask(sim.url)
        return answer if answer.status == 200 else None

    assert (await wait_until(admitted)).done


async def test_a_client_that_has_its_answer_may_call_at_once(sim: Control) -> None:
    """Its place is free before it can know, however the answer ends."""
    await sim.set(concurrency=1)
    async with openai.AsyncOpenAI(base_url=sim.url, api_key="none", max_retries=0) as client:
        for number in range(40):
            request = body("length=3", stream=number % 2 == 0)
            if number % 2 == 0:
                async for _ in await client.chat.completions.create(**request):
                    pass
            else:
                await client.chat.completions.create(**request)
    assert [(await ask(sim.url, f"fault={fault}")).status for fault in ("cut", "500", "rst", "html", "empty")] == [
        *(200, 500, 200, 200, 200)
    ]
    counted = await sim.counts()
    assert (counted["calls"], counted["refused"], counted["max_in_flight"]) == (45, 0, 1)


async def test_the_number_in_flight_is_counted_without_a_quota_too(sim: Control) -> None:
    async with AsyncExitStack() as held:
        for _ in range(5):
            reader, _ = await held.enter_async_context(socket_to(sim.url, body("fault=stall")))
            await reader.readuntil(b"\r\n\r\n")

    async def over() -> bool:
        return (await sim.counts())["in_flight"] == 0

    await wait_until(over)
    assert await sim.counts() == {"calls": 5, "refused": 0, "unavailable": 0, "in_flight": 0, "max_in_flight": 5}
    await sim.reset()
    assert set((await sim.counts()).values()) == {0}


async def test_a_reset_keeps_what_is_in_flight(sim: Control) -> None:
    async with socket_to(sim.url, body("fault=stall")) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        await sim.reset()
        assert await sim.counts() == {"calls": 0, "refused": 0, "unavailable": 0, "in_flight": 1, "max_in_flight": 1}

    async def over() -> bool:
        return (await sim.counts())["in_flight"] == 0

    await wait_until(over)


async def test_a_rate_is_announced_by_openai_s_headers(sim: Control) -> None:
    await sim.set(requests_per_minute=2, tokens_per_minute=100_000, minute=3600)
    first, second, third = [await ask(sim.url, "length=2") for _ in range(3)]
    names = ("limit", "remaining", "reset")
    requests = [[each.headers[f"x-ratelimit-{name}-requests"] for name in names] for each in (first, second, third)]
    assert [each[:2] for each in requests] == [["2", "1"], ["2", "0"], ["2", "0"]]
    assert all(re.fullmatch(r"(\dh)?\d+m[\d.]+s", each[2]) for each in requests)
    assert [each.status for each in (first, second, third)] == [200, 200, 429]
    assert "retry-after" not in third.headers
    assert third.headers["x-ratelimit-limit-tokens"] == "100000"
    assert 90_000 < int(third.headers["x-ratelimit-remaining-tokens"]) < 100_000
    await sim.set("PATCH", rate_headers=False)
    assert not any(name.startswith("x-ratelimit-") for name in (await ask(sim.url, "length=2")).headers)


async def test_a_call_needs_its_tokens(sim: Control) -> None:
    await sim.set(tokens_per_minute=50, minute=3600)
    assert [(await ask(sim.url, f"length={length}")).status for length in (30, 30, 2)] == [200, 429, 200]
    await sim.set(tokens_per_minute=50, minute=3600)
    assert (await ask(sim.url, "length=60")).status == 200  # more than the bucket holds: a full one is enough


async def test_a_bucket_refills(sim: Control) -> None:
    await sim.set(requests_per_minute=1, minute=0.2)

    async def answered() -> bool:
        return (await ask(sim.url, "length=1")).status == 200

    assert await answered()
    await wait_until(answered)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (6.5, "6.5s"), (90.5, "1m30.5s"), (7205, "2h0m5s"), (60, "1m0s"), (0.0001, "1ms")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_an_outage_lasts_until_it_is_ended(sim: Control) -> None:
    await sim.set(outage=True, outage_retry_after=20)
    answer = await ask(sim.url)
    assert (answer.status, answer.headers["retry-after"]) == (503, "20")
    await sim.set("PATCH", outage_status=529, outage_retry_after=None)
    answer = await ask(sim.url)
    assert (answer.status, answer.headers.get("retry-after")) == (529, None)
    assert (await sim.counts())["unavailable"] == 2
    await sim.set("PATCH", outage=False)
    assert (await ask(sim.url)).status == 200


async def test_an_outage_ends_by_itself(sim: Control) -> None:
    seconds = 0.2  # on a busy machine it may be over before the first call
    await sim.set(outage=seconds)
    while (await ask(sim.url)).status != 503:
        seconds *= 2
        await sim.set(outage=seconds)

    async def answered() -> bool:
        return (await ask(sim.url)).status == 200

    await wait_until(answered)
    assert (await sim.quota())["outage"] is False


async def test_headers_can_be_late(sim: Control) -> None:
    await sim.set(header_delay=0.3)
    began = asyncio.get_running_loop().time()
    async with socket_to(sim.url, body("length=1")) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        assert asyncio.get_running_loop().time() - began >= 0.3


async def test_put_replaces_the_quota_and_patch_changes_it(sim: Control) -> None:
    await sim.set(concurrency=4, retry_after=1)
    assert (await sim.set("PATCH", retry_after=2)).json() == await sim.quota()
    assert {name: (await sim.quota())[name] for name in ("concurrency", "retry_after")} == {
        "concurrency": 4,
        "retry_after": 2,
    }
    await sim.set(retry_after=3)
    assert (await sim.quota())["concurrency"] is None


@pytest.mark.parametrize("quota", [{"concurency": 1}, {"concurrency": -1}, {"minute": 0}, {"outage": "yes"}])
async def test_an_invalid_quota_changes_nothing(sim: Control, quota: dict[str, Any]) -> None:
    await sim.set(concurrency=7)
    answer = await sim.set(**quota)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert (await sim.quota())["concurrency"] == 7


def test_the_quota_can_be_set_at_the_start() -> None:
    with simulator("--quota", '{"concurrency": 4}') as (url, _):
        assert httpx2.get(url.removesuffix("/v1") + "/sim/quota").json()["concurrency"] == 4


def test_an_invalid_quota_ends_the_start() -> None:
    command = [sys.executable, "-m", "worker.simulator", "--port", "0", "--quota", '{"limit": 4}']
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 2
    assert "--quota: Invalid quota: Object contains unknown field `limit`" in ended.stderr


def test_every_field_is_described() -> None:
    described = package.__doc__ or ""
    for name in Quota.__struct_fields__:
        assert re.search(rf"^{name} ", described, re.MULTILINE), name
    assert all(f'"{field.name}"' in described for field in fields(Counts))

"""`on_upstream_error: continue`: a worker process, and upstreams that break off and go on."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.integration.worker.generations import Run, calls, expected_text, request_with, run
from tests.support import Service, service, upstream_sim, wait_until, worker
from worker.simulator import text

WAYS = ("plain", "prefix", "continue_final_message")
LIMITS = {"TOKENCAST_FIRST_TOKEN_TIMEOUT": "1", "TOKENCAST_IDLE_TIMEOUT": "0.7"}


@pytest.fixture(scope="module")
async def process(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Service, None]:
    async with worker(redis.url, sim, **LIMITS) as started:
        yield started


async def continued(broker: Broker, directive: str = "", **more: Any) -> Run:
    return await run(broker, directive, on_upstream_error="continue", **more)


def assert_one_completion(done: Run, expected: str = "") -> None:
    """What readers get is one reply: no `reset`, one role, one identity, one finish reason."""
    assert done.names == ["created", "started", *["chunk"] * len(done.chunks), "completed"]
    assert done.generation.attempt == 1
    assert done.generation.text == (expected or expected_text())
    assert len({(one["id"], one["created"], one["model"]) for one in done.chunks}) == 1
    choices = [choice for one in done.chunks for choice in one["choices"]]
    assert ["role" in choice["delta"] for choice in choices] == [True] + [False] * (len(choices) - 1)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [done.generation.finish_reason]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == done.generation.text


@pytest.mark.parametrize("fault", ["cut", "rst", "truncate", "stall", "bad-json", "error-frame"])
async def test_a_reply_that_breaks_off_goes_on(broker: Broker, process: Service, sim: str, fault: str) -> None:
    done = await continued(broker, f"fault={fault} times=1 label=go-{fault}")
    assert_one_completion(done)
    first, second = await calls(sim, f"go-{fault}")
    assert (first["continues"], second["continues"]) == ("", "plain")


@pytest.mark.parametrize("shape", ["azure", "extra", "gabforge"])
async def test_replies_of_other_forms_go_on(broker: Broker, process: Service, shape: str) -> None:
    done = await continued(broker, f"shape={shape} fault=cut times=1 label=shape-{shape} overlap=20 unicode=1")
    assert (done.generation.status, done.generation.attempt) == ("completed", 1)
    assert done.generation.text == "".join(text.pieces(7, 20, unicode=True))
    assert len({one.get("id") for one in done.chunks if one.get("id")}) == (0 if shape == "gabforge" else 1)


@pytest.mark.parametrize("overlap", [1, 16, 60, 10_000])
@pytest.mark.parametrize("at", [5, 60])
async def test_a_repeated_end_is_removed(broker: Broker, process: Service, overlap: int, at: int) -> None:
    """Except one character: that may belong to the text."""
    label = f"overlap-{overlap}-{at}"
    done = await continued(broker, f"length=80 fault=cut at={at} times=1 label={label} overlap={overlap}")
    whole = expected_text(80)
    start = len(expected_text(80, first=at))
    assert_one_completion(done, whole if overlap > 1 else whole[:start] + whole[start - 1 :])


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_repeated_beginning_is_removed(broker: Broker, process: Service, pieces: int) -> None:
    done = await continued(broker, f"fault=cut at={pieces} times=1 label=short-{pieces} overlap=30")
    assert_one_completion(done)


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_ask(own_redis: EmbeddedRedis, sim: str, way: str) -> None:
    async with (
        worker(own_redis.url, sim, TOKENCAST_UPSTREAM_CONTINUE_WITH=way),
        connect(own_redis.url) as broker,
    ):
        directive = f"fault=cut at=1 times=1 label=way-{way} overlap={100 if way == 'prefix' else 0}"
        assert_one_completion(await continued(broker, directive))
    first, second = await calls(sim, f"way-{way}")
    assert second["continues"] == way
    more = {"continue_final_message", "add_generation_prompt"} if way == "continue_final_message" else set()
    assert set(second["parameters"]) - set(first["parameters"]) == more


async def test_it_goes_on_as_often_as_there_are_attempts(broker: Broker, process: Service, sim: str) -> None:
    assert_one_completion(await continued(broker, "fault=cut times=2 label=twice"))
    assert len(await calls(sim, "twice")) == 3
    done = await continued(broker, "fault=cut label=always")
    assert done.error["code"] == "upstream_truncated"
    assert "reset" not in done.names
    assert done.generation.text == expected_text(first=15)
    assert len(await calls(sim, "always")) == 3


@pytest.mark.parametrize(
    ("directive", "more"),
    [
        ("length=5 tools=2 fault=cut at=100", {}),
        ("length=0 tools=2 fault=cut at=3", {}),
        ("fault=cut", {"n": 2}),
        ("reasoning=5 fault=cut at=0", {}),
        ("fault=cut", {"response_format": {"type": "json_object"}}),
        ("fault=cut continues=reject", {}),
    ],
    ids=["after a tool call", "in a tool call", "two choices", "only thoughts", "a format", "refused by the upstream"],
)
async def test_what_cannot_go_on_starts_again(
    broker: Broker, process: Service, directive: str, more: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    label = request.node.callspec.id.replace(" ", "-")
    done = await continued(broker, f"{directive} times=1 label={label}", **more)
    assert done.names.count("reset") == 1
    assert (done.generation.status, done.generation.attempt) == ("completed", 2)
    plain = await run(broker, directive.partition("fault")[0], **more)
    assert [one["message"] for one in done.generation.choices] == [one["message"] for one in plain.generation.choices]


async def test_thoughts_are_kept_and_not_repeated(broker: Broker, process: Service) -> None:
    done = await continued(broker, "reasoning=5 fault=cut times=1 label=thoughts")
    assert_one_completion(done)
    thoughts = "".join(text.pieces(7, 5, voice="reasoning"))
    assert done.generation.choices[0]["message"]["reasoning_content"] == thoughts


async def test_a_limit_of_tokens_holds_for_all_calls(broker: Broker, process: Service) -> None:
    done = await continued(broker, "fault=cut times=1 label=limited", max_tokens=12)
    assert_one_completion(done, expected_text(12))
    assert done.generation.finish_reason == "length"


@pytest.mark.parametrize("times", [1, 2], ids=["the first call", "the second call"])
async def test_no_call_is_made_after_the_last_token_of_the_limit(
    broker: Broker, process: Service, sim: str, times: int
) -> None:
    """A call breaks off after five tokens."""
    label = f"whole-{times}"
    done = await continued(broker, f"fault=cut times={times} label={label}", max_tokens=5 * times)
    assert_one_completion(done, expected_text(5 * times))
    assert done.generation.finish_reason == "length"
    assert done.generation.usage is not None
    assert done.generation.usage["completion_tokens"] == 5 * times
    assert len(await calls(sim, label)) == times


@pytest.mark.parametrize("usage", ["auto", "never"])
async def test_the_usage_is_that_of_all_calls(broker: Broker, process: Service, usage: str) -> None:
    done = await continued(broker, f"fault=cut times=1 label=usage-{usage} usage={usage}")
    plain = (await run(broker)).generation.usage
    assert plain is not None
    used = done.generation.usage
    assert used is not None
    assert used["completion_tokens"] == 20
    assert used["prompt_tokens"] > plain["prompt_tokens"]
    assert used["total_tokens"] == used["prompt_tokens"] + 20
    assert used["estimated"] is True
    reported = [one["usage"] for one in done.chunks if one.get("usage")]
    assert reported in ([], [used])


async def test_a_refused_call_is_repeated_when_the_upstream_is_back(own_redis: EmbeddedRedis) -> None:
    async with upstream_sim() as sim, worker(own_redis.url, sim), connect(own_redis.url) as broker:
        created = await broker.enqueue(slow_request("outage"))
        await wait_until(lambda: has_text(broker, created.id))
        await set_quota(sim, outage=True)
        await wait_until(lambda: unavailable(sim))
        await set_quota(sim)
        done = await ended(broker, created.id)
    assert_one_completion(done)


async def test_without_an_upstream_it_waits_in_the_queue_and_starts_again(own_redis: EmbeddedRedis, sim: str) -> None:
    async with worker(own_redis.url, sim, **LIMITS), connect(own_redis.url) as broker:
        created = await broker.enqueue(slow_request("paused"))
        await wait_until(lambda: has_text(broker, created.id))
        await broker.pause(upstream="default")

        async def waits() -> bool:
            return (await broker.get(created.id)).status == "queued"

        await wait_until(waits)
        assert len(await calls(sim, "paused")) == 1
        await broker.resume(upstream="default")
        done = await ended(broker, created.id)
        assert done.names.count("reset") == 1
        assert (done.generation.text, done.generation.attempt) == (expected_text(), 2)


async def test_the_text_of_a_killed_worker_starts_again(own_redis: EmbeddedRedis, sim: str) -> None:
    """Another worker cannot go on, whatever the policy."""
    quick = {"TOKENCAST_LEASE": "2"}
    async with connect(own_redis.url) as broker:
        async with worker(own_redis.url, sim, **quick) as process:
            created = await broker.enqueue({**request_with("speed=10"), "on_upstream_error": "continue"})
            await wait_until(lambda: has_text(broker, created.id))
            process.send(signal.SIGKILL)
            await process.process.wait()
        async with worker(own_redis.url, sim, **quick):
            done = await ended(broker, created.id)
    assert done.names.count("reset") == 1
    assert (done.generation.text, done.generation.attempt) == (expected_text(), 2)


async def test_a_cancel_ends_the_search_for_an_upstream(own_redis: EmbeddedRedis, sim: str) -> None:
    async with worker(own_redis.url, sim) as process, connect(own_redis.url) as broker:
        created = await broker.enqueue(slow_request("cancelled"))
        await wait_until(lambda: has_text(broker, created.id))
        await broker.pause(upstream="default")
        await wait_until(lambda: is_cut(sim, "cancelled"))
        await broker.cancel(created.id)
        await process.says("ended elsewhere")
        assert (await ended(broker, created.id)).names[-1] == "cancelled"


def slow_request(label: str) -> dict[str, Any]:
    directive = f"speed=20 fault=cut at=10 times=1 label={label}"
    return {**request_with(directive), "on_upstream_error": "continue"}


async def has_text(broker: Broker, gid: str) -> bool:
    return bool((await broker.get(gid)).text)


async def is_cut(sim: str, label: str) -> bool:
    [call] = await calls(sim, label)
    return call["outcome"] == "fault:cut"


async def unavailable(sim: str) -> int:
    return (await get(sim, "/sim/counts"))["unavailable"]


async def ended(broker: Broker, gid: str) -> Run:
    events = [event async for event in broker.follow(gid)]
    return Run(await broker.get(gid), events)


@asynccontextmanager
async def two_upstreams(redis_url: str, **second: Any) -> AsyncGenerator[TwoUpstreams, None]:
    """Two upstreams for one model, and two workers. `second`: options of the second upstream."""
    async with service("worker.simulator", "--port", "0") as first, upstream_sim() as other:
        url = (await first.says(r"upstream-sim ready on (\S+)"))[1]
        entry = {"api_key_env": None, "models": ["sim"], "max_concurrency": 8}
        upstreams = [{"name": "one", "base_url": url, **entry}, {"name": "two", "base_url": other, **entry, **second}]
        settings = {"TOKENCAST_UPSTREAMS": json.dumps(upstreams)}
        async with worker(redis_url, "", **settings), worker(redis_url, "", **settings):
            yield TwoUpstreams(first, other)


@dataclass(frozen=True)
class TwoUpstreams:
    first: Service
    second_url: str

    async def follow_killed(self, broker: Broker, count: int) -> list[Run]:
        """Kill the first upstream once it has sent text to all generations; return these when they have ended."""
        request = {**request_with("speed=20 label=moved"), "on_upstream_error": "continue"}
        created = [await broker.enqueue(request) for _ in range(count)]

        async def all_have_text() -> bool:
            return all([await has_text(broker, one.id) for one in created])

        await wait_until(all_have_text)
        self.first.send(signal.SIGKILL)
        return [await ended(broker, one.id) for one in created]


async def test_another_upstream_goes_on(own_redis: EmbeddedRedis) -> None:
    async with (
        connect(own_redis.url) as broker,
        two_upstreams(own_redis.url, continue_with="continue_final_message") as both,
    ):
        [done] = await both.follow_killed(broker, 1)
        assert_one_completion(done)
        assert json.loads(done.events[1].data)["upstream"] == "one"
        assert done.generation.upstream == "two"
        [call] = await calls(both.second_url, "moved")
        assert call["continues"] == "continue_final_message"

        async def places_are_free() -> bool:
            names = [keys.places("one"), keys.places("two")]
            return not any(await broker.queue.redis.pipeline([("ZCARD", name) for name in names]))

        await wait_until(places_are_free)


async def test_the_limit_of_another_upstream_is_never_exceeded(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url) as broker, two_upstreams(own_redis.url, max_concurrency=2) as both:
        for done in await both.follow_killed(broker, 6):
            assert_one_completion(done)
        counts = await get(both.second_url, "/sim/counts")
        assert (counts["calls"], counts["max_in_flight"]) == (6, 2)


async def get(sim: str, path: str) -> Any:
    async with httpx2.AsyncClient() as client:
        return (await client.get(sim.removesuffix("/v1") + path)).json()


async def set_quota(sim: str, **quota: Any) -> None:
    async with httpx2.AsyncClient() as client:
        assert (await client.put(sim.removesuffix("/v1") + "/sim/quota", json=quota)).status_code == 200

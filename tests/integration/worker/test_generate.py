"""Generations run by a worker process on the simulated upstream: the events that readers get in each case."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.integration.worker.generations import calls, expected_text, request_with, run
from tests.support import Service, gather, upstream_sim, wait_until, worker
from worker.simulator import text


@pytest.fixture(scope="module")
async def sim() -> AsyncGenerator[str, None]:
    async with upstream_sim() as url:
        yield url


@pytest.fixture(scope="module")
async def process(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Service, None]:
    limits = {"TOKENCAST_FIRST_TOKEN_TIMEOUT": "1", "TOKENCAST_IDLE_TIMEOUT": "0.7", "TOKENCAST_MAX_DURATION": "10"}
    async with worker(redis.url, sim, TOKENCAST_MAX_OUTPUT="100000", **limits) as started:
        yield started


async def test_a_generation_completes(broker: Broker, process: Service) -> None:
    done = await run(broker)
    assert done.names == ["created", "started", *["chunk"] * 23, "completed"]  # role, 20, finish, usage
    generation = done.generation
    assert generation.status == "completed"
    assert generation.text == expected_text()
    assert generation.choices[0]["message"] == {"role": "assistant", "content": expected_text(), "refusal": None}
    assert generation.choices[0]["finish_reason"] == generation.finish_reason == "stop"
    assert generation.usage == json.loads(done.events[-1].data)["usage"]
    assert generation.usage is not None
    assert generation.usage["completion_tokens"] == 20
    assert json.loads(done.events[-1].data)["finish_reason"] == "stop"
    cursors = [event.cursor for event in done.events[1:]]
    assert [cursor.seq for cursor in cursors] == list(range(25))
    assert len({cursor.attempt for cursor in cursors}) == 1
    assert [event.at_ms for event in done.events] == sorted(event.at_ms for event in done.events)
    assert done.events[-2].type == b"u"
    assert generation.first_token_at is not None
    assert generation.started_at is not None
    assert generation.started_at <= generation.first_token_at


@pytest.mark.parametrize(
    "directive",
    [
        "fault=no-done", "fault=raw-newline", "fault=retry-field", "fault=event-field", "fault=null-content",
        "fault=split", "fault=trickle speed=2000", "fault=gzip", "fault=slow-headers delay=0.2",
        "newlines=crlf split=3", "shape=azure", "shape=extra", "unicode=1", "split_surrogate=1",
        "keepalive=0.1 delay=0.3", "reasoning=5", "fault=tool-no-index tools=2", "refusal=3 length=0", "finish=length",
    ],
)  # fmt: skip
async def test_unusual_replies_complete(broker: Broker, process: Service, directive: str) -> None:
    done = await run(broker, directive)
    assert done.names[-1] == "completed"
    if "unicode" in directive or "surrogate" in directive:
        assert done.generation.text == "".join(text.pieces(7, 20, unicode=True))
    elif "tools" not in directive and "refusal" not in directive:
        assert done.generation.text == expected_text()


async def test_every_choice_that_readers_get_has_a_delta(broker: Broker, process: Service) -> None:
    """Also one that has only a filter result, whose other fields are kept."""
    done = await run(broker, "shape=azure", n=2)
    choices = [choice for chunk in done.chunks for choice in chunk["choices"]]
    assert all(isinstance(choice["delta"], dict) for choice in choices)
    assert [choice["delta"] for choice in choices if "content_filter_offsets" in choice] == [{}, {}]


@pytest.mark.parametrize("directive", ["fault=done-only", "shape=gabforge"])
async def test_done_without_a_finish_reason_completes_with_estimated_usage(
    broker: Broker, process: Service, directive: str
) -> None:
    done = await run(broker, f"{directive} usage=never")
    assert done.names[-1] == "completed"
    assert done.generation.text == expected_text()
    assert done.generation.usage is not None
    assert done.generation.usage["estimated"] is True
    assert done.generation.usage["completion_tokens"] == 20
    assert done.generation.finish_reason is None


@pytest.mark.parametrize(
    ("directive", "code", "shown"),
    [
        ("fault=401", "upstream_auth", 0),
        ("fault=403", "permission_denied", 0),
        ("fault=redirect", "bad_upstream_response", 0),
        ("fault=json-200", "sim_error", 0),
        ("fault=html", "bad_upstream_response", 0),
        ("fault=empty", "bad_upstream_response", 0),
        ("fault=truncate at=0", "upstream_truncated", 0),
        ("fault=truncate", "upstream_truncated", 5),
        ("fault=no-blank-line", "upstream_truncated", 5),
        ("fault=cut", "upstream_truncated", 5),
        ("fault=rst", "upstream_truncated", 5),
        ("fault=error-frame", "sim_error", 5),
        ("fault=error-frame at=0", "sim_error", 0),
        ("fault=bad-json", "bad_upstream_response", 5),
        ("fault=bad-utf8", "bad_upstream_response", 5),
        ("fault=bad-utf8-content", "bad_upstream_response", 5),
        ("fault=nan", "bad_upstream_response", 5),
        ("fault=huge-line", "output_too_large", 5),
        ("fault=stall", "upstream_timeout", 5),
        ("fault=comments", "upstream_timeout", 5),
        ("fault=mute", "upstream_timeout", 0),
        ("fault=silent keepalive=0.1", "upstream_timeout", 0),
    ],
)
async def test_every_failure_has_its_code_and_keeps_the_delivered_text(
    broker: Broker, process: Service, directive: str, code: str, shown: int
) -> None:
    done = await run(broker, directive, tokencast={"queue_timeout": 2})
    assert done.error["code"] == code
    assert done.error["message"]
    assert done.generation.status == "failed"
    assert done.generation.text == expected_text(first=shown)


async def test_a_refusal_beyond_the_deadline_fails_at_once(sim: str) -> None:
    async with EmbeddedRedis() as redis, worker(redis.url, sim), connect(redis.url) as broker:
        done = await run(broker, "fault=429 retry_after=60", tokencast={"queue_timeout": 59})
    assert done.names == ["created", "started", "failed"]
    assert done.error["code"] == "upstream_rate_limited"
    assert done.error["retry_after"] == 60
    assert done.error["status"] == 429


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_an_upstream_error_about_the_request_is_passed_on(broker: Broker, process: Service, status: int) -> None:
    done = await run(broker, f"fault={status}")
    assert done.error["status"] == status
    assert done.error["type"] == "invalid_request_error"
    assert done.names == ["created", "started", "failed"]


@pytest.mark.parametrize("fault", ["429 retry_after=0.1", "500", "503", "cut at=0", "rst at=0"])
async def test_a_call_that_fails_before_the_first_token_is_retried(
    broker: Broker, process: Service, fault: str
) -> None:
    done = await run(broker, f"fault={fault} times=1 label={fault.split()[0]}-again")
    assert done.names == ["created", "waiting", "started", *["chunk"] * 23, "completed"]
    waiting = json.loads(done.events[1].data)
    assert waiting["reason"] in ("upstream_busy", "upstream_down")
    assert waiting["retry_at"] > done.generation.created_at
    assert done.generation.text == expected_text()
    assert done.generation.attempt == 1


async def test_a_generation_can_restart_after_delivered_tokens(broker: Broker, process: Service) -> None:
    done = await run(broker, "fault=cut times=1 label=anew", on_upstream_error="restart")
    assert done.names.count("reset") == 1
    assert json.loads(done.events[done.names.index("reset")].data) == {
        "attempt": 2,
        "reason": "upstream_error",
        "upstream": "default",
    }
    assert done.generation.status == "completed"
    assert done.generation.attempt == 2
    assert done.generation.text == expected_text()


async def test_restarts_are_limited(broker: Broker, process: Service) -> None:
    done = await run(broker, "fault=cut", on_upstream_error="restart")
    assert done.names.count("reset") == 2
    assert done.error["code"] == "upstream_truncated"
    assert done.generation.attempt == 3
    assert done.generation.text == expected_text(first=5)


async def test_an_invalid_request_is_not_restarted(broker: Broker, process: Service) -> None:
    done = await run(broker, "fault=400", on_upstream_error="restart")
    assert done.names == ["created", "started", "failed"]


async def test_the_upstream_gets_the_body_of_the_caller_without_our_parameters(
    broker: Broker, process: Service, sim: str
) -> None:
    more = {"temperature": 0.5, "unheard_of": {"a": [1, None]}, "metadata": {"a": "b"}, "ttl_seconds": 60}
    await run(broker, "label=body", **more)
    [call] = await calls(sim, "body")
    assert call["parameters"] == ["messages", "model", "stream", "stream_options", "temperature", "unheard_of"]
    assert call["headers"]["accept-encoding"] == "identity"
    assert call["headers"]["authorization"] is True
    assert call["outcome"] == "completed"


async def test_a_refused_usage_option_is_omitted_in_a_second_call(broker: Broker, process: Service, sim: str) -> None:
    done = await run(broker, "usage=reject label=reject")
    assert done.generation.status == "completed"
    first, second = await calls(sim, "reject")
    assert "stream_options" in first["parameters"]
    assert "stream_options" not in second["parameters"]


async def test_every_choice_must_finish(broker: Broker, process: Service) -> None:
    done = await run(broker, "fault=no-done", n=3)
    assert done.generation.status == "completed"
    assert len(done.generation.choices) == 3
    assert (await run(broker, "fault=truncate at=30", n=3)).error["code"] == "upstream_truncated"


async def test_a_cancel_closes_a_silent_upstream(broker: Broker, process: Service, sim: str) -> None:
    created = await broker.enqueue(request_with("delay=60 label=cancel"))
    await wait_until(lambda: calls(sim, "cancel"))
    cancelled = await broker.cancel(created.id)
    assert cancelled.status == "cancelled"

    async def disconnected() -> bool:
        [call] = await calls(sim, "cancel")
        return call["outcome"] == "disconnected" and call["ended_at"] - cancelled.ended_at < 1

    await wait_until(disconnected)
    events = [event.name async for event in broker.follow(created.id)]
    assert events == ["created", "cancelled"]


async def test_a_deleted_generation_closes_its_upstream(broker: Broker, process: Service, sim: str) -> None:
    created = await broker.enqueue(request_with("speed=20 length=1000 label=delete"))
    await wait_until(lambda: calls(sim, "delete"))
    await broker.delete(created.id)

    async def disconnected() -> bool:
        return (await calls(sim, "delete"))[0]["outcome"] == "disconnected"

    await wait_until(disconnected)
    await process.says(f"{created.id}: ended elsewhere .GONE.")


async def test_an_output_above_the_limit_fails_with_the_delivered_text(
    broker: Broker, process: Service, sim: str
) -> None:
    done = await run(broker, "length=5000 label=big")
    assert done.error["code"] == "output_too_large"
    assert len(done.generation.text) > 1000
    assert expected_text(5000).startswith(done.generation.text)
    logged = [choice["delta"].get("content") or "" for chunk in done.chunks for choice in chunk["choices"]]
    assert "".join(logged) == done.generation.text

    async def disconnected() -> bool:
        return (await calls(sim, "big"))[0]["outcome"] is not None

    await wait_until(disconnected)


async def test_max_duration_and_unknown_models_fail_a_generation(sim: str) -> None:
    limits = {"TOKENCAST_MODELS": "sim-*", "TOKENCAST_MAX_DURATION": "0.5"}
    async with EmbeddedRedis() as redis, worker(redis.url, sim, **limits), connect(redis.url) as broker:
        slow, unknown = await gather(
            run(broker, "delay=60 label=longest", model="sim-slow"), run(broker, "label=unserved")
        )
    assert slow.error["code"] == "timeout"
    assert unknown.error["code"] == "model_not_found"
    assert unknown.error["status"] == 404
    assert not await calls(sim, "unserved")

    async def disconnected() -> bool:
        return (await calls(sim, "longest"))[0]["outcome"] == "disconnected"

    await wait_until(disconnected)


async def test_concurrent_generations_have_their_own_texts(broker: Broker, process: Service) -> None:
    runs = await gather(*(run(broker, f"length=200 seed={seed}") for seed in range(40)))
    for seed, done in enumerate(runs):
        assert done.generation.text == expected_text(200, seed)


async def test_no_prompt_is_in_the_output_or_in_the_queue(
    redis: EmbeddedRedis, broker: Broker, process: Service
) -> None:
    canary, key = "xyzzy-canary", "simulated"
    execute = broker.queue.redis.execute
    done = await run(broker, f"label={canary}", user=canary)
    failed = await run(broker, f"label={canary} fault=nan", user=canary)
    assert done.generation.status == "completed"
    assert failed.generation.status == "failed"
    assert canary not in process.output
    assert f'"{key}"' not in process.output
    for pattern in ("arq:*", "tc:ready", "tc:turn*", "tc:later", "tc:w*", "tc:u*"):
        for name in await execute("KEYS", pattern):
            assert canary.encode() not in (await execute("DUMP", name) or b"")  # it may no longer exist
    assert await broker.queue.depth() == 0
    assert await execute("EXISTS", keys.READY) == 0

"""Failures reach the SDKs as their own exceptions, with a status, a code and a param, and no error makes an SDK repeat
a request that is already billed. The SDKs run with their default retries."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import ALL, Json, Sdk, assert_raised, generations, sdk_named
from tests.support import Gateway, forget_refusals, gather, request_body, upstream_calls, worker
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

PROMPT = "Explain the GIL in CPython."
SEED = seed_of([{"role": "user", "content": PROMPT}])


@pytest.fixture(scope="module")
async def running(redis: EmbeddedRedis, sim: str, api: Gateway) -> AsyncGenerator[Gateway, None]:
    """A gateway and a worker with short timeouts."""
    async with worker(redis.url, sim, TOKENCAST_IDLE_TIMEOUT="0.3", TOKENCAST_MAX_DURATION="1.5"):
        yield api


@pytest.fixture(autouse=True)
async def usable_upstream(redis: EmbeddedRedis) -> None:
    await forget_refusals(redis.url)


@pytest.fixture(scope="module", params=ALL)
async def sdk(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    async with sdk_named(request.param) as started:
        yield started


def sim_request(directive: str = "", model: str = "sim", **more: Any) -> Json:
    content = f"{PROMPT} [[sim speed=0 {directive}]]"
    return {"model": model, "messages": [{"role": "user", "content": content}], "extra_body": more}


FAULTS: dict[str, tuple[int, str | None, str | None]] = {
    # The upstream's statements about the request are passed on in its own words.
    "fault=400": (400, "context_length_exceeded", "messages"),
    "fault=403": (403, "permission_denied", None),
    "fault=404": (404, "model_not_found", "model"),
    "fault=413": (413, "request_too_large", None),
    "fault=422": (422, "unprocessable", "tools"),
    # The upstream refuses the gateway's key: a server error.
    "fault=401": (502, "upstream_auth", None),
    # Errors of the upstream itself, with a longer retry time than the worker accepts.
    "fault=429 retry_after=60": (429, "upstream_rate_limited", None),
    "fault=500 retry_after=60": (502, "upstream_error", None),
    "fault=503 retry_after=60": (502, "upstream_error", None),
    "fault=html": (502, "bad_upstream_response", None),
    "fault=json-200": (502, "sim_error", None),
    "fault=redirect": (502, "bad_upstream_response", None),
    "fault=empty": (502, "bad_upstream_response", None),
    "fault=truncate at=0": (502, "upstream_truncated", None),
    "fault=error-frame at=0": (502, "sim_error", None),
}


@pytest.mark.parametrize("call", ["stream", "create"])
@pytest.mark.parametrize("directive", FAULTS)
async def test_an_upstream_error_has_its_status(
    running: Gateway, sim: str, sdk: Sdk, directive: str, call: str
) -> None:
    """With and without streaming; one generation and one upstream call, although the SDK would retry by default."""
    label = secrets.token_hex(8)
    result = await sdk.call(running.url, call, **sim_request(f"{directive} label={label}", metadata={"label": label}))
    error = assert_raised(sdk, result, *FAULTS[directive])
    assert error["headers"]["x-should-retry"] == "false"
    [generation] = await generations(running, label)
    assert error["headers"]["x-generation-id"] == generation["id"]
    assert generation["status"] == "failed"
    assert len(await upstream_calls(sim, label)) == 1


async def test_the_message_of_the_upstream_is_passed_on(running: Gateway, sdk: Sdk) -> None:
    result = await sdk.call(running.url, "create", **sim_request("fault=400"))
    assert "maximum context length is 8192 tokens" in result.error["message"]
    assert result.error["type"] == "invalid_request_error"


async def test_an_error_about_the_upstream_key_is_not_passed_on(running: Gateway, sdk: Sdk) -> None:
    """A wrong key is the operator's fault, and the upstream's message about it is not passed on."""
    result = await sdk.call(running.url, "create", **sim_request("fault=401"))
    assert "Incorrect API key" not in result.error["message"]
    assert result.error["type"] == "server_error"


async def test_a_rate_limit_of_the_upstream_has_a_retry_time(running: Gateway, sdk: Sdk) -> None:
    result = await sdk.call(running.url, "stream", **sim_request("fault=429 retry_after=60"))
    assert result.error["headers"]["retry-after"] == "60"


async def test_a_temporary_rate_limit_is_invisible(running: Gateway, sim: str, sdk: Sdk) -> None:
    """The worker retries a call without output; the SDK waits for the status line, and gets the text."""
    label = secrets.token_hex(8)
    body = sim_request(f"fault=429 times=1 retry_after=0.1 length=5 label={label}", metadata={"label": label})
    result = await sdk.call(running.url, "stream", **body)
    assert result.error is None
    assert result.text() == "".join(pieces(SEED, 5))
    assert len(await upstream_calls(sim, label)) == 2
    assert len(await generations(running, label)) == 1


async def test_a_silent_upstream_is_a_504(running: Gateway, sdk: Sdk) -> None:
    """An upstream that accepts the request and sends nothing."""
    label = secrets.token_hex(8)
    body = sim_request("fault=mute", metadata={"label": label})
    for result in await gather(*(sdk.call(running.url, call, **body) for call in ("stream", "create"))):
        assert_raised(sdk, result, 504, "timeout")
    assert len(await generations(running, label)) == 2


BROKEN_STREAMS = {
    "fault=truncate": "upstream_truncated",
    "fault=rst": "upstream_truncated",
    "fault=error-frame": "sim_error",
    "fault=bad-json": "bad_upstream_response",
    "fault=stall": "upstream_timeout",
}


@pytest.mark.parametrize("directive", BROKEN_STREAMS)
async def test_a_truncated_text_raises(running: Gateway, sim: str, sdk: Sdk, directive: str) -> None:
    """A stream gets the text so far, then an APIError; a request without streaming only the error. Partial text is
    never presented as complete."""
    label = secrets.token_hex(8)
    body = sim_request(f"{directive} at=5 label={label}", metadata={"label": label})
    streamed, whole = await gather(*(sdk.call(running.url, call, **body) for call in ("stream", "create")))
    assert streamed.text() == "".join(pieces(SEED, 60)[:5])
    assert streamed.finish_reasons == {}
    assert streamed.error is not None
    assert streamed.error["api_error"]
    assert (streamed.error["code"], streamed.error["type"]) == (BROKEN_STREAMS[directive], "server_error")
    assert_raised(sdk, whole, 504 if directive == "fault=stall" else 502, BROKEN_STREAMS[directive])
    assert len(await generations(running, label)) == len(await upstream_calls(sim, label)) == 2


BAD_BODIES: dict[str, tuple[Json, str | None, str]] = {
    "no messages": ({"messages": None}, "messages", "missing_required_parameter"),
    "empty messages": ({"messages": []}, "messages", "empty_array"),
    "messages of text": ({"messages": "hello"}, "messages", "invalid_type"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_value"),
    "content of a number": ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
    "no model": ({"model": None}, "model", "missing_required_parameter"),
    "no choices": ({"n": 0}, "n", "invalid_value"),
    "n of text": ({"n": "2"}, "n", "invalid_type"),
    "options of a list": ({"stream_options": []}, "stream_options", "invalid_type"),
    "metadata of numbers": ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
}


@pytest.mark.parametrize("call", ["stream", "create"])
@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_a_bad_request(api: Gateway, sdk: Sdk, name: str, call: str) -> None:
    """The error names the wrong parameter."""
    body, param, code = BAD_BODIES[name]
    error = assert_raised(sdk, await sdk.call(api.url, call, **sim_request(**body)), 400, code, param)
    assert error["type"] == "invalid_request_error"
    assert param is None or param in error["message"]


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_an_unknown_model_is_not_found(api: Gateway, sdk: Sdk, call: str) -> None:
    error = assert_raised(
        sdk, await sdk.call(api.url, call, **sim_request(model="nobody-1")), 404, "model_not_found", "model"
    )
    assert "nobody-1" in error["message"]


async def test_an_idempotency_key_with_another_body_is_a_conflict(api: Gateway, sdk: Sdk) -> None:
    """A retry does not resolve it."""
    key = {"idempotency-key": secrets.token_hex(8)}
    await api.create(request_body(), **key)
    result = await sdk.call(api.url, "create", extra_headers=key, **request_body("Something else."))
    error = assert_raised(sdk, result, 422, "idempotency_conflict", "idempotency-key")
    assert error["headers"]["x-should-retry"] == "false"

"""Requests that wait for a completion, with or without streaming, learn how it ended: before its text, without text, or
when the gateway stops. The generation was accepted before, so no error may make an SDK retry."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncGenerator

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import ALL, Call, Sdk, assert_raised, generations, sdk_named
from tests.support import Gateway, Writer, gateway, request_body, wait_until


@pytest.fixture(scope="module", params=ALL)
async def sdk(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    async with sdk_named(request.param) as started:
        yield started


async def waiting_call(api: Gateway, sdk: Sdk, call: str) -> tuple[str, Call]:
    """A call whose generation was accepted, and that waits because no worker runs."""
    label = secrets.token_hex(8)
    waiting = sdk.start(api.url, call, **request_body(extra_body={"metadata": {"label": label}}))
    [generation] = await wait_until(lambda: generations(api, label))
    return generation["id"], waiting


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_a_cancellation_before_any_text_is_a_conflict(api: Gateway, sdk: Sdk, call: str) -> None:
    """By default, SDKs retry a 409; the header of this one forbids it."""
    gid, waiting = await waiting_call(api, sdk, call)
    await api.http.post(f"/v1/generations/{gid}/cancel")
    error = assert_raised(sdk, await waiting.end(), 409, "generation_cancelled")
    assert error["headers"]["x-should-retry"] == "false"
    assert (await api.http.get("/v1/generations?limit=1")).json()["data"][0]["id"] == gid


async def test_a_cancellation_after_some_text_is_a_conflict_without_streaming(
    api: Gateway, broker: Broker, sdk: Sdk
) -> None:
    gid, waiting = await waiting_call(api, sdk, "create")
    await (await Writer(broker.store.redis, gid).claim()).append("Half a te")
    await api.http.post(f"/v1/generations/{gid}/cancel")
    assert_raised(sdk, await waiting.end(), 409, "generation_cancelled")


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_a_deletion_before_any_text_is_gone(api: Gateway, sdk: Sdk, call: str) -> None:
    """The generation was accepted, so this error forbids a retry too."""
    gid, waiting = await waiting_call(api, sdk, call)
    await api.http.delete(f"/v1/generations/{gid}")
    error = assert_raised(sdk, await waiting.end(), 410, "generation_gone", "id")
    assert error["headers"]["x-should-retry"] == "false"
    assert error["headers"]["x-generation-id"] == gid


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_a_stopping_gateway_answers_waiting_requests(redis: EmbeddedRedis, sdk: Sdk, call: str) -> None:
    """A broken connection would make the SDK repeat the request at another gateway, which would be billed again."""
    async with gateway(redis.url) as api:
        gid, waiting = await waiting_call(api, sdk, call)
        api.process.send(signal.SIGTERM)
        error = assert_raised(sdk, await waiting.end(), 503, "server_draining")
    assert error["headers"]["x-should-retry"] == "false"
    assert error["headers"]["x-generation-id"] == gid


async def test_a_late_failure_is_an_error_frame(api: Gateway, broker: Broker) -> None:
    """The status line waits for ten seconds; then it is 200, and an error is a frame."""
    async with sdk_named("newest") as sdk:
        started = asyncio.get_running_loop().time()
        gid, waiting = await waiting_call(api, sdk, "stream")
        writer = await Writer(broker.store.redis, gid).claim()
        await waiting.wait_for_headers()
        assert asyncio.get_running_loop().time() - started > 9
        await writer.finish("failed", b'{"error":{"message":"Late.","type":"server_error","code":"upstream_timeout"}}')
        result = await waiting.end()
    assert (result.error["class"], result.error["code"], result.error["status"]) == (
        "APIError",
        "upstream_timeout",
        None,
    )

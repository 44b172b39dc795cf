"""Who waits for a completion, streamed or whole, is told how it ended: before its text, without it, or when the gateway
stops. All of it after the generation was accepted, so nothing may make an SDK ask again.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncGenerator

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import ALL, Call, Sdk, generations, raised, sdk_named
from tests.support import Gateway, Writer, gateway, request_body, wait_until


@pytest.fixture(scope="module", params=ALL)
async def sdk(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    async with sdk_named(request.param) as started:
        yield started


async def begun(api: Gateway, sdk: Sdk, call: str) -> tuple[str, Call]:
    """A call whose generation was accepted, and that waits for what no worker brings."""
    label = secrets.token_hex(8)
    waiting = sdk.start(api.url, call, **request_body(extra_body={"metadata": {"label": label}}))
    [generation] = await wait_until(lambda: generations(api, label))
    return generation["id"], waiting


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_cancelled_before_any_text_is_a_conflict(api: Gateway, sdk: Sdk, call: str) -> None:
    """SDKs repeat a 409 as a rule; this one says that they should not."""
    gid, waiting = await begun(api, sdk, call)
    await api.http.post(f"/v1/generations/{gid}/cancel")
    error = raised(sdk, await waiting.end(), 409, "generation_cancelled")
    assert error["headers"]["x-should-retry"] == "false"
    assert (await api.http.get("/v1/generations?limit=1")).json()["data"][0]["id"] == gid


async def test_cancelled_after_some_text_is_a_conflict_for_who_wants_the_whole(
    api: Gateway, broker: Broker, sdk: Sdk
) -> None:
    gid, waiting = await begun(api, sdk, "create")
    await (await Writer(broker.store.redis, gid).claim()).append("Half a te")
    await api.http.post(f"/v1/generations/{gid}/cancel")
    raised(sdk, await waiting.end(), 409, "generation_cancelled")


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_deleted_before_any_text_is_gone(api: Gateway, sdk: Sdk, call: str) -> None:
    """It was accepted, so this too is an error after which nothing is to be repeated."""
    gid, waiting = await begun(api, sdk, call)
    await api.http.delete(f"/v1/generations/{gid}")
    error = raised(sdk, await waiting.end(), 410, "generation_gone", "id")
    assert error["headers"]["x-should-retry"] == "false"
    assert error["headers"]["x-generation-id"] == gid


@pytest.mark.parametrize("call", ["stream", "create"])
async def test_a_stopping_gateway_tells_who_waits(redis: EmbeddedRedis, sdk: Sdk, call: str) -> None:
    """A connection that just broke would make the SDK repeat the request elsewhere, and that is another bill."""
    async with gateway(redis.url) as api:
        gid, waiting = await begun(api, sdk, call)
        api.process.send(signal.SIGTERM)
        error = raised(sdk, await waiting.end(), 503, "server_draining")
    assert error["headers"]["x-should-retry"] == "false"
    assert error["headers"]["x-generation-id"] == gid


async def test_a_late_failure_is_an_error_frame(api: Gateway, broker: Broker) -> None:
    """Ten seconds the status line waits; then it is a 200, and what comes is a frame."""
    async with sdk_named("newest") as sdk:
        started = asyncio.get_running_loop().time()
        gid, waiting = await begun(api, sdk, "stream")
        writer = await Writer(broker.store.redis, gid).claim()
        await waiting.answered()
        assert asyncio.get_running_loop().time() - started > 9
        await writer.finish("failed", b'{"error":{"message":"Late.","type":"server_error","code":"upstream_timeout"}}')
        result = await waiting.end()
    assert (result.error["class"], result.error["code"], result.error["status"]) == (
        "APIError",
        "upstream_timeout",
        None,
    )

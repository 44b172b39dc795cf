"""Behind nginx, which buffers and compresses unless it is told not to: tokens arrive as they come all the same."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from broker import Broker
from broker.embedded import EmbeddedRedis
from tests.acceptance.edge import connections, frames, linux, listed, new_one
from tests.acceptance.nginx import nginx
from tests.support import Gateway, Writer, gateway, gather, texts, wait_until

pytestmark = pytest.mark.proxy

COMPRESSED = {"accept-encoding": "gzip"}


@pytest.fixture(scope="module", params=["as it comes", "recommended"])
async def proxied(
    request: pytest.FixtureRequest, api: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway, None]:
    directory = tmp_path_factory.mktemp("nginx")
    async with nginx(api, directory, as_it_comes=request.param == "as it comes") as behind:
        yield behind


async def claimed(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


@pytest.mark.parametrize("path", ["/v1/generations/{}/events", "/v1/chat/completions/{}?stream=true"])
async def test_tokens_arrive_as_they_come(proxied: Gateway, broker: Broker, path: str) -> None:
    """The next one is not written before the last has arrived. Nothing compresses them; JSON is compressed here."""
    writer = await claimed(proxied, broker)
    await writer.append("0 ")
    async with proxied.http.stream("GET", path.format(writer.gid), headers=COMPRESSED) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        received, stream = b"", response.aiter_raw()
        async with asyncio.timeout(30):
            for number in range(1, 20):
                while b'"%d "' % (number - 1) not in received:
                    received += await anext(stream)
                await writer.append(f"{number} ")
            await writer.finish()
            async for data in stream:
                received += data
    assert texts(frames(received)) == "".join(f"{number} " for number in range(20))
    whole = await proxied.http.get(f"/v1/generations/{writer.gid}", headers=COMPRESSED)
    assert whole.headers["content-encoding"] == "gzip"


async def test_the_sdk_s_tokens_arrive_as_they_come(proxied: Gateway, broker: Broker) -> None:
    async with (
        DefaultAsyncHttpxClient(verify=False) as http,
        AsyncOpenAI(base_url=f"{proxied.url}/v1", api_key="none", http_client=http) as client,
    ):
        before = await listed(proxied)
        asking = asyncio.create_task(
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        )
        writer = await Writer(broker.store.redis, await new_one(proxied, before)).claim()
        await writer.append("0 ")
        (stream,) = await gather(asking)
        text = ""
        async with asyncio.timeout(30):
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                number = len(text.split())
                await (writer.append(f"{number} ") if number < 10 else writer.finish())
        assert text == "0 1 2 3 4 5 6 7 8 9 "


@linux
async def test_who_leaves_the_proxy_is_let_go(proxied: Gateway, api: Gateway, broker: Broker) -> None:
    writer = await claimed(proxied, broker)
    await writer.append("word")
    before = connections(api)
    async with aclosing(proxied.follow(writer.gid)) as stream:
        for _ in range(3):
            await anext(stream)
        mine = connections(api) - before
    await wait_until(lambda: len(connections(api) & mine) < len(mine) or not mine)


async def test_without_a_gateway_a_browser_is_told_to_come_back(redis: EmbeddedRedis, tmp_path: Path) -> None:
    """A stream's reader gets no error, which would be the end of an EventSource; who calls the interface does."""
    async with gateway(redis.url) as api, nginx(api, tmp_path) as behind:
        gid = (await behind.create())["id"]
        api.process.send(signal.SIGKILL)
        await api.process.wait()
        waits = set()
        for _ in range(40):
            later = await behind.http.get(f"/v1/generations/{gid}/events")
            assert later.status_code == 200
            assert later.headers["content-type"] == "text/event-stream"
            (frame,) = frames(later.content)
            waits.add(frame.raw)
        assert waits <= {b"retry: 1500", b"retry: 3000", b"retry: 4500", b"retry: 6000"}
        assert len(waits) > 1
        assert (await behind.http.get(f"/v1/generations/{gid}")).status_code == 502
        log = (tmp_path / "access.log").read_text()
        assert f'"GET /v1/generations/{gid}/events" 200' in log


async def test_no_token_is_in_the_proxy_s_log(api: Gateway, tmp_path: Path) -> None:
    async with nginx(api, tmp_path) as behind:
        await behind.http.get("/v1/generations/gen_x/events?token=secret-canary")
        await wait_until(lambda: "/v1/generations/gen_x/events" in (tmp_path / "access.log").read_text())
        assert "canary" not in (tmp_path / "access.log").read_text()

"""Several gateways with one proxy: a dead, stopping or crashing gateway causes no error for subscribers, and a request
that is not idempotent is never sent twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import listed
from tests.acceptance.edge.proxies import PROXIES, Kind, proxy
from tests.servers.tcp import tcp_server
from tests.support import Gateway, Writer, gateway, gather, request_body, texts, until_text, wait_until

pytestmark = pytest.mark.proxy


@pytest.fixture(params=PROXIES)
def kind(request: pytest.FixtureRequest) -> Kind:
    return PROXIES[request.param]


async def test_a_dead_gateway_is_skipped(kind: Kind, redis: EmbeddedRedis, api: Gateway, tmp_path: Path) -> None:
    async with gateway(redis.url) as dying, proxy(kind, api, tmp_path, dying.url) as via_proxy:
        gid = (await api.create())["id"]
        dying.process.send(signal.SIGKILL)
        await dying.process.wait()
        found = await gather(*(via_proxy.http.get(f"/v1/generations/{gid}") for _ in range(20)))
        assert {answer.status_code for answer in found} == {200}
        await wait_until(lambda: all_posts_pass(kind, via_proxy))


async def all_posts_pass(kind: Kind, via_proxy: Gateway) -> bool:
    """Nothing had been sent to the dead gateway, so the proxy may use the other one: immediately, or for a Caddy before
    2.11.2 after it has detected the failure."""
    answers = await gather(*(via_proxy.http.post("/v1/generations", json=request_body()) for _ in range(10)))
    statuses = {answer.status_code for answer in answers}
    assert statuses <= ({202} if kind.name == "nginx" else {202, 502, 503})
    return statuses == {202}


async def test_a_subscriber_continues_at_the_other_gateway(
    kind: Kind, redis: EmbeddedRedis, broker: Broker, tmp_path: Path
) -> None:
    """Its gateway is stopped, as in a deploy; it reconnects with its cursor, as an EventSource does."""
    async with (
        gateway(redis.url) as first,
        gateway(redis.url) as second,
        proxy(kind, first, tmp_path, second.url) as via_proxy,
    ):
        writer = await Writer(broker.store.redis, (await via_proxy.create())["id"]).claim()
        await writer.append("one ")
        stream = via_proxy.follow(writer.gid)
        seen = await until_text(stream)
        for stopping in (first, second):
            if await subscribers(stopping):
                stopping.process.send(signal.SIGTERM)
                break
        async for frame in stream:
            seen.append(frame)
        await stopping.process.wait()
        await writer.append("two ")
        await writer.finish()
        cursor = next(frame.id for frame in reversed(seen) if frame.id)
        seen += await via_proxy.events(writer.gid, **{"Last-Event-ID": cursor})
        assert texts(seen) == "one two "
        assert seen[-1].event == "completed"


async def subscribers(api: Gateway) -> bool:
    metrics = (await api.http.get("/metrics")).text
    return 'tokencast_subscribers{dialect="native"} 1.0' in metrics


@asynccontextmanager
async def crashing_gateway() -> AsyncGenerator[tuple[str, list[bytes]], None]:
    """A gateway that dies after it has received the headers of a request. Its probes succeed."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith((b"GET /readyz", b"GET /healthz")):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        else:
            heads.append(head)
        writer.close()

    async with tcp_server(serve) as address:
        yield f"http://{address}", heads


async def test_a_lost_post_is_not_sent_again(kind: Kind, redis: EmbeddedRedis, tmp_path: Path) -> None:
    """Only the caller may repeat a POST on which a gateway may have acted: each one gets 202 or one error, and no
    generation is created without a response that names it."""
    async with (
        gateway(redis.url) as api,
        crashing_gateway() as (url, heads),
        proxy(kind, api, tmp_path, url) as via_proxy,
    ):
        before, announced = await listed(api), set[str]()

        async def is_lost() -> bool:
            answer = await via_proxy.http.post("/v1/generations", json=request_body())
            assert answer.status_code in (202, 502), answer.text
            if answer.status_code == 202:
                announced.add(answer.json()["id"])
            return answer.status_code == 502

        await wait_until(is_lost)
        assert len(heads) == 1
        assert heads[0].startswith(b"POST ")
        assert await listed(api) - before == announced


async def test_a_lost_get_is_sent_to_another_gateway(kind: Kind, redis: EmbeddedRedis, tmp_path: Path) -> None:
    async with (
        gateway(redis.url) as api,
        crashing_gateway() as (url, heads),
        proxy(kind, api, tmp_path, url) as via_proxy,
    ):

        async def is_used() -> bool:
            assert (await via_proxy.http.get("/v1/models")).status_code == 200
            return bool(heads)

        await wait_until(is_used)

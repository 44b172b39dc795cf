"""Several gateways behind one proxy: one that is gone, stops or breaks off costs no reader an error, and no request is
made twice that must not be."""

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


async def test_a_gateway_that_died_is_passed_over(
    kind: Kind, redis: EmbeddedRedis, api: Gateway, tmp_path: Path
) -> None:
    async with gateway(redis.url) as dying, proxy(kind, api, tmp_path, dying.url) as behind:
        gid = (await api.create())["id"]
        dying.process.send(signal.SIGKILL)
        await dying.process.wait()
        found = await gather(*(behind.http.get(f"/v1/generations/{gid}") for _ in range(20)))
        assert {answer.status_code for answer in found} == {200}
        await wait_until(lambda: all_posts_pass(kind, behind))


async def all_posts_pass(kind: Kind, behind: Gateway) -> bool:
    """Nothing had been sent to the dead one, so they may go to the other: at once, but with a Caddy before 2.11.2 only
    when it has found out."""
    answers = await gather(*(behind.http.post("/v1/generations", json=request_body()) for _ in range(10)))
    statuses = {answer.status_code for answer in answers}
    assert statuses <= ({202} if kind.name == "nginx" else {202, 502})
    return statuses == {202}


async def test_a_reader_goes_on_at_the_other_gateway(
    kind: Kind, redis: EmbeddedRedis, broker: Broker, tmp_path: Path
) -> None:
    """Its own is stopped, as in a deploy; it comes back with its cursor, as an EventSource does."""
    async with (
        gateway(redis.url) as first,
        gateway(redis.url) as second,
        proxy(kind, first, tmp_path, second.url) as behind,
    ):
        writer = await Writer(broker.store.redis, (await behind.create())["id"]).claim()
        await writer.append("one ")
        stream = behind.follow(writer.gid)
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
        seen += await behind.events(writer.gid, **{"Last-Event-ID": cursor})
        assert texts(seen) == "one two "
        assert seen[-1].event == "completed"


async def subscribers(api: Gateway) -> bool:
    metrics = (await api.http.get("/metrics")).text
    return 'tokencast_subscribers{dialect="native"} 1.0' in metrics


@asynccontextmanager
async def breaks_off() -> AsyncGenerator[tuple[str, list[bytes]], None]:
    """A gateway as it dies: it has a request's head, and is gone before it answers. A probe finds it well."""
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


async def test_what_was_sent_is_not_sent_again(kind: Kind, redis: EmbeddedRedis, tmp_path: Path) -> None:
    """A POST that a gateway may have acted on is its caller's to repeat: for each one 202 or one error, and no
    generation that nobody was told of."""
    async with gateway(redis.url) as api, breaks_off() as (url, heads), proxy(kind, api, tmp_path, url) as behind:
        before, told = await listed(api), set[str]()

        async def broken() -> bool:
            answer = await behind.http.post("/v1/generations", json=request_body())
            assert answer.status_code in (202, 502), answer.text
            if answer.status_code == 202:
                told.add(answer.json()["id"])
            return answer.status_code == 502

        await wait_until(broken)
        assert len(heads) == 1
        assert heads[0].startswith(b"POST ")
        assert await listed(api) - before == told


async def test_what_changes_nothing_is_asked_of_another(kind: Kind, redis: EmbeddedRedis, tmp_path: Path) -> None:
    async with gateway(redis.url) as api, breaks_off() as (url, heads), proxy(kind, api, tmp_path, url) as behind:

        async def broke() -> bool:
            assert (await behind.http.get("/v1/models")).status_code == 200
            return bool(heads)

        await wait_until(broke)

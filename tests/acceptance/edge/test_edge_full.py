"""More connections than a gateway can hold: it refuses early, in a form that each client understands, and existing
connections are unaffected."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import httpx2

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import Answer, Peer, connections, cpu_seconds, frames, linux, peer, peers
from tests.support import DEADLINE, Gateway, Writer, gateway, gather, request_body, service, wait_until

pytestmark = linux

ORIGIN = "https://app.example"


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    """Create and claim a generation over a connection of its own."""
    created = await api.create(connection="close")
    return await Writer(broker.store.redis, created["id"]).claim()


async def start_reading(readers: list[Peer], writer: Writer) -> None:
    for reader in readers:
        reader.follow(writer.gid)
    for reader in readers:
        await reader.until(b"event: started")
        await reader.until(b"\n\n\r\n")


async def assert_reading(readers: list[Peer], writer: Writer) -> None:
    """New text reaches all of them, and nothing else does."""
    await writer.append("more")
    for reader in readers:
        (frame,) = frames((await reader.until(b"\n\n\r\n")).partition(b"\r\n")[2][:-2])
        assert frame.event == "chunk"


async def response_to(api: Gateway, method: str, path: str, headers: str = "", body: bytes = b"") -> Answer:
    async with peer(api) as client:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n{headers}"
        head += f"Content-Length: {len(body)}\r\n" + "Content-Type: application/json\r\n" * bool(body)
        client.send(head.encode() + b"\r\n" + body)
        return await client.answer()


async def test_above_the_connection_limit_each_client_is_refused_in_its_form(
    redis: EmbeddedRedis, broker: Broker
) -> None:
    async with (
        gateway(redis.url, TOKENCAST_MAX_CONNECTIONS="20", TOKENCAST_CORS_ORIGINS=ORIGIN) as api,
        peers(api, 20) as readers,
    ):
        writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
        await start_reading(readers, writer)

        body = json.dumps(request_body(stream=True)).encode()
        for method, path in (
            ("GET", f"/v1/generations/{writer.gid}"),
            ("POST", "/v1/generations"),
            ("POST", "/v1/chat/completions"),
            ("GET", f"/v1/chat/completions/{writer.gid}?stream=true"),
            ("HEAD", f"/v1/generations/{writer.gid}/events"),
            ("GET", "/"),
        ):
            refused = await response_to(api, method, path, body=body if method == "POST" else b"")
            assert refused.status == 503, path
            assert 1 <= int(refused.headers["retry-after"]) <= 5
            assert refused.headers["connection"] == "close"
            assert refused.headers["x-request-id"].startswith("req_")
            if method != "HEAD":
                assert json.loads(refused.body)["error"]["code"] == "server_full"
        page = await response_to(api, "GET", f"/v1/generations/{writer.gid}/events", "Accept: application/json\r\n")
        assert page.status == 503

        for headers in ("", "Accept: text/event-stream\r\n", "Last-Event-ID: 0-1\r\nAccept: */*\r\n"):
            later = await response_to(api, "GET", f"/v1/generations/{writer.gid}/events", headers)
            assert later.status == 200
            assert later.headers["content-type"].startswith("text/event-stream")
            assert later.headers["access-control-allow-origin"] == ORIGIN
            assert re.fullmatch(rb"retry: \d{4,5}\n: This gateway has reached its connection limit.*\n\n", later.body)

        assert (await response_to(api, "GET", "/healthz")).status == 200
        assert (await response_to(api, "GET", "/readyz")).status == 200
        await assert_reading(readers, writer)

        readers.pop().reset()
        await wait_until(lambda: len(connections(api)) == 19)
        async with peer(api) as late:
            await start_reading([late], writer)
            await assert_reading([late], writer)


async def test_existing_connections_are_served_at_the_limit(redis: EmbeddedRedis) -> None:
    """The limit is on connections, not on requests: an accepted connection is served to its end."""
    async with gateway(redis.url, TOKENCAST_MAX_CONNECTIONS="5") as api, peers(api, 5) as members, peer(api) as late:
        for member in members:
            member.get("/v1/models")
            await member.until(b'"object":"list"')
        late.get("/v1/models")
        assert (await late.answer()).status == 503
        for member in members:
            member.get("/v1/models")
            await member.until(b'"object":"list"')


@asynccontextmanager
async def with_few_files(redis_url: str, files: int, **variables: str) -> AsyncGenerator[Gateway, None]:
    settings = {"PORT": "0", "TOKENCAST_DRAIN": "0.2", "TOKENCAST_MODELS": "m", **variables}
    async with service(
        "tests.acceptance.edge.few_files", str(files), "api", REDIS_URL=redis_url, **settings
    ) as process:
        url = (await process.says(r"listening on (http://\S+)"))[1]
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE) as client:
            yield Gateway(url, client, process)


async def test_files_are_reserved_for_probes_and_redis(redis: EmbeddedRedis, broker: Broker) -> None:
    """With 256 files there are 146 streams. None of two hundred more gets a stream and some get a response; existing
    streams continue, and files remain for probes and for Redis."""
    writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
    async with with_few_files(redis.url, 256, TOKENCAST_CORS_ORIGINS=ORIGIN) as api, peers(api, 146) as readers:
        await start_reading(readers, writer)
        async with peers(api, 200) as late:
            for reader in late:
                with suppress(ConnectionError):
                    reader.follow(writer.gid)
            answers = await gather(*(reader.rest() for reader in late))
        assert not any(b"event:" in answer for answer in answers)
        assert sum(b"retry: " in answer for answer in answers) > 10
        assert (await response_to(api, "GET", "/healthz")).status == 200
        async with peers(api, 200):  # connections without a request
            await wait_until(lambda: len(connections(api)) == 171)
            await assert_reading(readers, writer)
        await wait_until(lambda: len(connections(api)) == 146)
        assert "Traceback" not in api.process.output


async def test_a_gateway_survives_without_free_files(redis: EmbeddedRedis, broker: Broker) -> None:
    """If the system runs out of files, new connections are closed without using much CPU time, and streams continue.
    The gateway recovers when files are available."""
    writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
    async with gateway(redis.url) as api, peers(api, 10) as readers:
        await start_reading(readers, writer)
        process = api.process.process.pid
        used = max(int(name) for name in os.listdir(f"/proc/{process}/fd"))
        _, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (used + 4, hard))
        async with peers(api, 100) as late:
            for reader in late:
                with suppress(ConnectionError):
                    reader.get("/healthz", headers="Connection: close\r\n")
            answers = await gather(*(reader.rest() for reader in late))
            served = sum(b"200 OK" in answer for answer in answers)
            assert 1 <= served <= 50  # four, plus the idle connections to Redis that were closed meanwhile
            assert served + answers.count(b"") == 100
            before, since = cpu_seconds(api), time.monotonic()
            for _ in range(20):
                await assert_reading(readers, writer)
                await asyncio.sleep(0.05)
            assert cpu_seconds(api) - before < (time.monotonic() - since) / 2
        resource.prlimit(process, resource.RLIMIT_NOFILE, (hard, hard))

        async def alive() -> bool:
            with suppress(httpx2.HTTPError):
                return (await api.http.get("/healthz")).status_code == 200
            return False

        await wait_until(alive)
        await assert_reading(readers, writer)
        assert "Traceback" not in api.process.output

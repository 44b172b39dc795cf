"""A gateway with a proxy, which buffers and compresses by default: tokens still arrive immediately. Also the other
promises of docs/nginx.conf and docs/Caddyfile."""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import connections, frames, linux, listed, new_generation
from tests.acceptance.edge.proxies import AROUND_NGINX, NGINX, PROXIES, Kind, ProxySetup, proxy
from tests.support import ROOT, Gateway, Writer, gateway, gather, request_body, texts, wait_until

pytestmark = pytest.mark.proxy

FORBIDDEN = "http://255.255.255.255:80"
"""An address to which connections are not permitted: EACCES instead of a refusal."""
LEVEL = re.compile(r"error-log-level\W+(\w+)")

COMPRESSED = {"accept-encoding": "gzip"}


@pytest.fixture(scope="module", params=[f"{name}, {how}" for name in PROXIES for how in ("default", "recommended")])
async def proxied(
    request: pytest.FixtureRequest, api: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway, None]:
    name, how = request.param.split(", ")
    async with proxy(PROXIES[name], api, tmp_path_factory.mktemp(name), default_config=how == "default") as via_proxy:
        yield via_proxy


@pytest.fixture(params=PROXIES)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each proxy with its recommended configuration."""
    return PROXIES[request.param]


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


@pytest.mark.parametrize("path", ["/v1/generations/{}/events", "/v1/chat/completions/{}?stream=true"])
async def test_tokens_arrive_immediately(proxied: Gateway, broker: Broker, path: str) -> None:
    """The next token is written only after the last one has arrived. Streams are not compressed."""
    writer = await start_generation(proxied, broker)
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


async def test_tokens_reach_the_sdk_immediately(proxied: Gateway, broker: Broker) -> None:
    async with (
        DefaultAsyncHttpxClient(verify=False) as http,
        AsyncOpenAI(base_url=f"{proxied.url}/v1", api_key="none", http_client=http) as client,
    ):
        before = await listed(proxied)
        asking = asyncio.create_task(
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        )
        writer = await Writer(broker.store.redis, await new_generation(proxied, before)).claim()
        await writer.append("0 ")
        (stream,) = await gather(asking)
        text = ""
        async with asyncio.timeout(30):
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                number = len(text.split())
                await (writer.append(f"{number} ") if number < 10 else writer.finish())
        assert text == "0 1 2 3 4 5 6 7 8 9 "


async def test_other_responses_are_compressed(kind: Kind, api: Gateway, tmp_path: Path) -> None:
    """This shows that compression is active, and that streams are exempt from it."""
    async with proxy(kind, api, tmp_path) as via_proxy:
        answer = await via_proxy.http.get("/openapi.json", headers=COMPRESSED)
    assert answer.headers["content-encoding"] == "gzip"


@linux
async def test_a_disconnect_from_the_proxy_reaches_the_gateway(proxied: Gateway, api: Gateway, broker: Broker) -> None:
    writer = await start_generation(proxied, broker)
    await writer.append("word")
    before = connections(api)
    async with aclosing(proxied.follow(writer.gid)) as stream:
        for _ in range(3):
            await anext(stream)
        mine = connections(api) - before
    await wait_until(lambda: len(connections(api) & mine) < len(mine) or not mine)


async def test_a_url_of_a_hundred_ids_with_cursors_is_accepted(proxied: Gateway, broker: Broker) -> None:
    writers = [await start_generation(proxied, broker) for _ in range(2)]
    for writer in writers:
        await writer.finish()
    unknown = [f"gen_{number:0>34}@1850812345678901-1000000" for number in range(98)]
    named = [*(f"{writer.gid}@{writer.attempt}-0" for writer in writers), *unknown]
    path = "/v1/events?" + "&".join(f"generation={one}" for one in named)
    assert len(path) > 7300
    ended = [frame.json["generation"] async for frame in proxied.stream("GET", path) if frame.event == "completed"]
    assert sorted(ended) == sorted(writer.gid for writer in writers)


async def test_metrics_are_not_public(kind: Kind, api: Gateway, tmp_path: Path) -> None:
    async with proxy(kind, api, tmp_path) as via_proxy:
        for path in (
            "/metrics",
            "/metrics?x=1",
            "/%6Detrics",
            "/./metrics",
            "/metrics/",
            "//metrics",
            "/v1/../metrics",
        ):
            answer = await raw_get(via_proxy, path)
            assert b"tokencast_" not in answer
            assert int(answer.split(b" ")[1]) in (307, 403, 404), path


async def raw_get(via_proxy: Gateway, path: str) -> bytes:
    """Send the path unchanged: an HTTP client would normalise it."""
    port = urlsplit(via_proxy.url).port
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


async def test_without_a_gateway_a_browser_is_told_to_reconnect(
    kind: Kind, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """A stream gets no error, which would stop an EventSource; other requests do."""
    async with gateway(redis.url) as api, proxy(kind, api, tmp_path) as via_proxy:
        gid = (await via_proxy.create())["id"]
        api.process.send(signal.SIGKILL)
        await api.process.wait()
        streams = [f"/v1/generations/{gid}/events"] * 40 + [f"/v1/events?generation={gid}", "/v1/activity"]
        *later, called = await gather(*(via_proxy.http.get(path) for path in (*streams, f"/v1/generations/{gid}")))
        waits = set()
        for answer in later:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            (frame,) = frames(answer.content)
            waits.add(frame.raw)
        assert waits <= {b"retry: 1500", b"retry: 3000", b"retry: 4500", b"retry: 6000"}
        assert len(waits) > 1
        assert called.status_code in (502, 503)
        assert f"/v1/generations/{gid}/events" in (tmp_path / "access.log").read_text()


@pytest.mark.parametrize("dead", [False, True])
async def test_no_token_is_in_the_proxy_log(kind: Kind, redis: EmbeddedRedis, tmp_path: Path, dead: bool) -> None:
    """Also not in the error messages about an unavailable gateway, and for all spellings of `?`."""
    async with gateway(redis.url) as api, proxy(kind, api, tmp_path) as via_proxy:
        if dead:
            api.process.send(signal.SIGKILL)
            await api.process.wait()
        marks = ("?", "%3F", "%3f")
        await gather(
            *(
                via_proxy.http.get(f"/v1/generations/gen_x{at}/events{mark}token=canary")
                for at, mark in enumerate(marks)
            )
        )

        def is_logged(at: int) -> bool:
            return f"/v1/generations/gen_x{at}/events" in (tmp_path / "access.log").read_text()

        await wait_until(lambda: all(map(is_logged, range(len(marks)))))
    for name in ("access.log", "errors.log"):
        assert "canary" not in (tmp_path / name).read_text(), name


async def test_no_token_is_in_the_nginx_log_of_graver_errors(api: Gateway, tmp_path: Path) -> None:
    """For nginx, a forbidden connection is graver than an `error`, and so are missing files."""
    async with proxy(NGINX, api, tmp_path, FORBIDDEN) as via_proxy:
        await gather(*(via_proxy.http.get("/v1/generations/gen_x/events?token=canary") for _ in range(8)))
        await wait_until(lambda: FORBIDDEN.removeprefix("http://") in (tmp_path / "access.log").read_text())
    for name in ("access.log", "errors.log"):
        assert "canary" not in (tmp_path / name).read_text(), name


INGRESS = """
server {{
    listen 127.0.0.1:{port};
    access_log off;
    error_log stderr {level};
    location = /healthz {{ return 200; }}
    location /refused {{ proxy_pass http://127.0.0.1:1; }}
    location /forbidden {{ proxy_pass {forbidden}; }}
}}
"""


def documented_level() -> str:
    """The level that the Ingress and the documentation give for the controller's ConfigMap."""
    files = ("kubernetes/ingress.yaml", "deploying.md")
    [level] = {found for file in files for found in LEVEL.findall((ROOT / "docs" / file).read_text("utf-8"))}
    return level


@pytest.mark.parametrize("documented", [True, False])
async def test_the_ingress_error_log_contains_tokens_by_default(api: Gateway, tmp_path: Path, documented: bool) -> None:
    """By default, ingress-nginx logs no requests here, but errors with their complete URL."""
    level = documented_level() if documented else "notice"

    def config(setup: ProxySetup, **_: bool) -> str:
        inner = INGRESS.format(port=setup.port, level=level, forbidden=FORBIDDEN)
        return AROUND_NGINX.format(directory=setup.directory, inner=inner)

    ingress = Kind("nginx", config, NGINX.arguments)
    async with proxy(ingress, api, tmp_path, default_config=True) as via_proxy:
        for path in ("/refused", "/forbidden"):
            assert (await via_proxy.http.get(f"{path}?token=canary")).status_code == 502
    assert ("canary" in (tmp_path / "errors.log").read_text()) is not documented


async def test_no_key_is_in_the_proxy_log(kind: Kind, api: Gateway, tmp_path: Path) -> None:
    async with proxy(kind, api, tmp_path) as via_proxy:
        await via_proxy.http.get("/v1/generations", headers={"authorization": "Bearer secret-canary"})
        await wait_until(lambda: "/v1/generations" in (tmp_path / "access.log").read_text())
    assert "canary" not in (tmp_path / "access.log").read_text()


async def test_a_proxy_waits_for_a_long_completion(kind: Kind, running: Gateway, tmp_path: Path) -> None:
    """Nothing is sent meanwhile, so a timeout for idle connections must not end it."""
    shorter = {"proxy_read_timeout 60s;": "proxy_read_timeout 1s;"} if kind.name == "nginx" else {}
    body = request_body("[[sim seed=1 length=20 speed=10]]", model="sim")
    async with proxy(kind, running, tmp_path, changes=shorter) as via_proxy:
        answer = await via_proxy.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


async def test_a_proxy_timeout_with_an_idempotency_key_costs_one_generation(running: Gateway, tmp_path: Path) -> None:
    """The proxy gives up, and the SDK repeats the request, as for any 504; each time for the same generation."""
    before = await listed(running)
    async with (
        proxy(NGINX, running, tmp_path, changes={"proxy_read_timeout 20m;": "proxy_read_timeout 1s;"}) as via_proxy,
        DefaultAsyncHttpxClient(verify=False) as http,
        AsyncOpenAI(base_url=f"{via_proxy.url}/v1", api_key="none", http_client=http, max_retries=20) as client,
    ):
        asking = client.chat.completions.create(
            model="sim",
            messages=[{"role": "user", "content": "[[sim seed=2 length=20 speed=10]]"}],
            extra_headers={"Idempotency-Key": "hasty"},
        )
        (completion,) = await gather(asking)
    assert completion.choices[0].finish_reason == "stop"
    assert " 504 " in (tmp_path / "access.log").read_text()
    assert await listed(running) - before == {completion.id}

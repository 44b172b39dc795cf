"""Idle connections: a gateway keeps them longer than a proxy does. A request that arrives while its connection is
closed is lost, and the proxy answers 502 if it was a POST."""

from __future__ import annotations

import re
import signal
from urllib.parse import urlsplit

import pytest

from api.app import create_app
from api.server.server import config_for
from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.settings.settings import Settings
from tests.acceptance.edge.peer import Peer, closed_by, connections, linux, peer
from tests.acceptance.edge.proxies import PROXIES, proxy
from tests.support import ROOT, Writer, gateway, wait_until

PROXY_DEFAULT = 60  # seconds; of nginx, ingress-nginx, and the usual cloud load balancers


async def serve_one_request(client: Peer) -> None:
    client.get("/v1/models")
    await client.until(b'"object":"list"')


async def test_an_idle_connection_is_closed_after_the_keep_alive_time(redis: EmbeddedRedis) -> None:
    """Without a response, and also after a second request."""
    async with gateway(redis.url, TOKENCAST_KEEP_ALIVE="1") as api, peer(api) as client:
        await serve_one_request(client)
        await serve_one_request(client)
        await client.until(b"}]}")
        assert await client.rest() == b""


async def test_slow_headers_on_an_idle_connection_have_the_header_timeout(redis: EmbeddedRedis) -> None:
    """It has the header timeout, independent of the keep-alive time."""
    async with gateway(redis.url, TOKENCAST_KEEP_ALIVE="600", TOKENCAST_HEADER_TIMEOUT="0.5") as api, peer(api) as slow:
        await serve_one_request(slow)
        await slow.until(b"}]}")
        slow.send("GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        refused = await slow.answer()
    assert refused.status == 408


async def test_the_default_keep_alive_is_longer_than_that_of_proxies() -> None:
    """Longer than the default of proxies, and than the recommended files."""
    async with connect(settings=Settings()) as broker:
        kept = config_for(create_app(broker), Settings()).timeout_keep_alive
    assert kept >= PROXY_DEFAULT + 10
    for file, pattern in (("nginx.conf", r"keepalive_timeout (\d+)s;"), ("Caddyfile", r"keepalive (\d+)s ")):
        [seconds] = re.findall(pattern, (ROOT / "docs" / file).read_text("utf-8"))
        assert int(seconds) + 10 <= kept, file


async def test_a_drain_closes_idle_connections_immediately(redis: EmbeddedRedis, broker: Broker) -> None:
    """Streams, which the drain allows to run for minutes, still run at that time."""
    async with (
        gateway(redis.url, TOKENCAST_DRAIN="600") as api,
        peer(api) as idle,
        peer(api) as first,
        peer(api) as second,
    ):
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        await serve_one_request(idle)
        await idle.until(b"}]}")
        for reader in (first, second):
            reader.follow(writer.gid)
            await reader.until(b"event: started")
        api.process.send(signal.SIGTERM)
        assert await idle.rest() == b""
        assert api.process.process.returncode is None
        api.process.send(signal.SIGINT)


@linux
@pytest.mark.proxy
@pytest.mark.parametrize("name", PROXIES)
async def test_a_recommended_proxy_reuses_connections(
    name: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All POSTs use the connection that the first one opened."""
    async with gateway(redis.url) as api, proxy(PROXIES[name], api, tmp_path_factory.mktemp(name)) as via_proxy:
        await via_proxy.create()
        kept = connections(api)
        for _ in range(5):
            await via_proxy.create()
        assert kept
        assert len(connections(api) - kept) < 5
        assert connections(api) & kept


@linux
@pytest.mark.proxy
@pytest.mark.parametrize("name", PROXIES)
async def test_a_recommended_proxy_closes_idle_connections_first(
    name: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only the proxy's time is changed, to one second; the gateway has its default. The side that closes a connection
    knows this before it sends a request."""
    shorter = {"nginx": ("keepalive_timeout 60s;", "keepalive_timeout 1s;"), "caddy": ("keepalive 60s", "keepalive 1s")}
    there, here = shorter[name]
    directory = tmp_path_factory.mktemp(name)
    async with gateway(redis.url) as api, proxy(PROXIES[name], api, directory, changes={there: here}) as via_proxy:
        await via_proxy.create()
        kept = connections(api)
        await wait_until(lambda: not connections(api) & kept)
        assert closed_by(urlsplit(api.url).port or 0, kept) == {"peer"}
        await via_proxy.create()

"""Connections between two requests: a gateway keeps them longer than a proxy does. A request that meets the closing of
its connection is lost, and the proxy answers 502 if that was a POST."""

from __future__ import annotations

import re
import signal

import pytest

from api.app import create_app
from api.server.server import config_for
from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.settings.settings import Settings
from tests.acceptance.edge.peer import Peer, connections, linux, peer
from tests.acceptance.edge.proxies import PROXIES, proxy
from tests.support import ROOT, Writer, gateway

PROXY_DEFAULT = 60  # seconds: of nginx, of ingress-nginx, and of the usual cloud load balancers


async def served(client: Peer) -> None:
    client.get("/v1/models")
    await client.until(b'"object":"list"')


async def test_an_idle_connection_is_closed_after_its_time(redis: EmbeddedRedis) -> None:
    """Without a word, and also after a second request."""
    async with gateway(redis.url, TOKENCAST_KEEP_ALIVE="1") as api, peer(api) as client:
        await served(client)
        await served(client)
        await client.until(b"}]}")
        assert await client.rest() == b""


async def test_a_slow_head_on_a_kept_connection_is_not_idle(redis: EmbeddedRedis) -> None:
    """It has the time of any head, however long idle connections are kept."""
    async with gateway(redis.url, TOKENCAST_KEEP_ALIVE="600", TOKENCAST_HEADER_TIMEOUT="0.5") as api, peer(api) as slow:
        await served(slow)
        await slow.until(b"}]}")
        slow.send("GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        refused = await slow.answer()
    assert refused.status == 408


async def test_without_a_setting_it_is_longer_than_a_proxy_s() -> None:
    """Than a proxy's default, and than what the recommended files say."""
    async with connect(settings=Settings()) as broker:
        kept = config_for(create_app(broker), Settings()).timeout_keep_alive
    assert kept >= PROXY_DEFAULT + 10
    for file, pattern in (("nginx.conf", r"keepalive_timeout (\d+)s;"), ("Caddyfile", r"keepalive (\d+)s ")):
        [seconds] = re.findall(pattern, (ROOT / "docs" / file).read_text("utf-8"))
        assert int(seconds) + 10 <= kept, file


async def test_a_drain_closes_idle_connections_at_once(redis: EmbeddedRedis, broker: Broker) -> None:
    """A stream that the drain leaves alone for minutes still runs then."""
    async with (
        gateway(redis.url, TOKENCAST_DRAIN="600") as api,
        peer(api) as idle,
        peer(api) as first,
        peer(api) as second,
    ):
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        await served(idle)
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
async def test_a_recommended_proxy_uses_a_connection_again(
    name: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All POSTs go over the connection that the first one opened."""
    async with gateway(redis.url) as api, proxy(PROXIES[name], api, tmp_path_factory.mktemp(name)) as behind:
        await behind.create()
        kept = connections(api)
        for _ in range(5):
            await behind.create()
        assert kept
        assert len(connections(api) - kept) < 5
        assert connections(api) & kept

"""`tokencast api --processes 2`: two gateways on one port."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx2
import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import Peer, linux, peers, unchunked
from tests.support import DEADLINE, Gateway, Writer, gather, service, texts, wait_until

READERS = 40  # all of them at one gateway: once in 10^12 runs


@asynccontextmanager
async def two_processes(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    variables = {"REDIS_URL": redis.url, "PORT": "0", "TOKENCAST_DRAIN": "0.2", "TOKENCAST_MODELS": "m"}
    variables["TOKENCAST_KEEP_ALIVE"] = "1"  # the connection of a subscriber closes soon after its stream
    async with service("api", "--processes", "2", **variables) as process:
        url = (await process.says(r"2 processes on (http://\S+)"))[1]
        await wait_until(lambda: len(gateways(process.process.pid)) == 2)
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE) as client:
            await wait_until(lambda: len(re.findall("listening on", process.output)) == 2)
            yield Gateway(url, client, process)


def gateways(supervisor: int) -> list[int]:
    """The pids of the gateway processes, from /proc."""
    with open(f"/proc/{supervisor}/task/{supervisor}/children") as children:
        return [int(pid) for pid in children.read().split()]


async def follow(readers: list[Peer], writer: Writer) -> None:
    for reader in readers:
        reader.follow(writer.gid)
    for reader in readers:
        await reader.until(b'"word"}}]}\n\n\r\n')


@linux
async def test_subscribers_are_distributed_and_a_dead_process_is_replaced(redis: EmbeddedRedis, broker: Broker) -> None:
    async with two_processes(redis) as api, peers(api, READERS) as readers:
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        await writer.append("word")
        await follow(readers, writer)
        doomed, other = gateways(api.process.process.pid)
        os.kill(doomed, signal.SIGKILL)
        await api.process.says("process . of 2 ended .SIGKILL.; restarting it")
        await wait_until(lambda: len(re.findall("listening on", api.process.output)) == 3)
        assert other in gateways(api.process.process.pid)
        assert len(gateways(api.process.process.pid)) == 2
        await writer.finish()
        ends = [await reader.rest() for reader in readers]
        assert 0 < sum(b"completed" in end for end in ends) < READERS
        for _ in range(10):  # at any of the gateways
            assert texts(await api.events(writer.gid)) == "word"


@linux
async def test_all_processes_drain_and_free_the_port(redis: EmbeddedRedis, broker: Broker) -> None:
    async with two_processes(redis) as api, peers(api, READERS) as readers:
        writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
        await writer.append("word")
        await follow(readers, writer)
        api.process.send(signal.SIGTERM)
        ends = await gather(*(reader.rest() for reader in readers))
        assert all(unchunked(end).split(b"\n\n")[-2].startswith(b"retry: ") for end in ends)
        assert await api.process.wait() == 0
        assert "Traceback" not in api.process.output
        assert "restarting it" not in api.process.output
        where = urlsplit(api.url)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((where.hostname, where.port))


@linux
async def test_gateway_processes_die_with_their_supervisor(redis: EmbeddedRedis) -> None:
    async with two_processes(redis) as api:
        pids = gateways(api.process.process.pid)
        api.process.send(signal.SIGKILL)
        await api.process.wait()
        await wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


async def test_a_process_that_cannot_start_is_not_restarted() -> None:
    async with (
        EmbeddedRedis(options={"maxmemory-policy": "allkeys-lru"}) as evicting,
        service("api", "--processes", "2", PORT="0", REDIS_URL=evicting.url) as process,
    ):
        assert await process.wait() == 2
        assert "restarting it" not in process.output


@pytest.mark.parametrize("count", ["0", "-1", "two"])
async def test_an_invalid_number_of_processes_is_refused(count: str) -> None:
    async with service("api", "--processes", count) as process:
        assert await process.wait() == 2
        assert "--processes" in process.output


async def test_each_process_reports_the_metrics_of_all(redis: EmbeddedRedis) -> None:
    """A scrape reaches one of them at random."""
    async with two_processes(redis) as api:
        for _ in range(20):  # each request on a connection of its own
            async with httpx2.AsyncClient(base_url=api.url, timeout=DEADLINE) as http:
                assert (await http.get("/v1/models")).status_code == 200
        counted = 'tokencast_http_requests_total{method="GET",route="/v1/models",status="200"} 20.0'

        async def all_counted() -> bool:
            return counted in (await api.http.get("/metrics")).text

        await wait_until(all_counted)

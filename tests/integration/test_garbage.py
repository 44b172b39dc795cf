"""What a connection took is free when it is over. Left to the collector, which comes rarely, the connections of half an
hour were thousands."""

from __future__ import annotations

import asyncio
import gc

import httpx2
import pytest

from api.app import create_app
from api.protocol import HttpProtocol
from api.server import Server, config_for, listen
from broker import connect
from broker.embedded import EmbeddedRedis
from broker.settings import Settings
from tests.support import Writer, gather, request_body, wait_until


def left() -> int:
    return sum(isinstance(each, HttpProtocol) for each in gc.get_objects())


@pytest.mark.parametrize("how", ["to the end", "leaves", "keeps alive"])
async def test_a_connection_that_is_over_waits_for_no_collector(redis: EmbeddedRedis, how: str) -> None:
    settings = Settings(REDIS_URL=redis.url, PORT="0")  # type: ignore[call-arg]
    sock = listen(settings)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with connect(settings=settings) as broker:

        async def drain() -> None:
            await broker.hub.drain(0)

        server = Server(config_for(create_app(broker), settings), drain)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await wait_until(lambda: server.started)
        writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
        await writer.append("word")
        path = f"/v1/generations/{writer.gid}/events"
        gc.collect()
        gc.disable()
        try:
            async with httpx2.AsyncClient(base_url=url) as http:
                if how == "keeps alive":
                    for _ in range(3):
                        assert (await http.get(f"/v1/generations/{writer.gid}")).status_code == 200
                elif how == "leaves":
                    async with http.stream("GET", path) as response:
                        await anext(response.aiter_raw())
                else:
                    reading = asyncio.create_task(http.get(path))
                    await wait_until(lambda: broker.hub.subscribers == 1)
                    await writer.finish()
                    (response,) = await gather(reading)
                    assert b"event: completed" in response.content
            await wait_until(lambda: left() == 0)
        finally:
            gc.enable()
            server.should_exit = True
            await serving

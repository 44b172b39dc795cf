"""`/v1/generations/{id}/subscribers` at two gateways."""

from __future__ import annotations

import asyncio
from typing import Any

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, Writer, gateway, in_background, wait_until


async def subscribers(api: Gateway, gid: str) -> Any:
    answer = await api.http.get(f"/v1/generations/{gid}/subscribers")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def follow(api: Gateway, path: str) -> None:
    async for _ in api.stream("GET", path):
        pass


async def never_read(api: Gateway, gid: str) -> None:
    """A connection whose peer reads nothing."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(f"GET /v1/generations/{gid}/events HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    try:
        await asyncio.Event().wait()
    finally:
        writer.transport.abort()


async def test_each_connection_is_listed_with_its_lag(own_redis: EmbeddedRedis) -> None:
    settings = {"TOKENCAST_SEND_TIMEOUT": "600"}
    async with (
        connect(own_redis.url) as broker,
        gateway(own_redis.url, **settings) as here,
        gateway(own_redis.url, **settings) as there,
    ):
        gid = (await here.create())["id"]
        none = await subscribers(here, gid)
        assert (none["data"], [one["subscribers"] for one in none["gateways"]]) == ([], [0])
        writer = await Writer(broker.store.redis, gid).claim()
        async with in_background(
            never_read(here, gid), follow(there, f"/v1/generations/{gid}/events"),
            follow(there, f"/v1/chat/completions/{gid}?stream=true"),
        ):  # fmt: skip
            await here.wait_for_subscribers(1)
            await there.wait_for_subscribers(2)
            for _ in range(40):
                await writer.append_raw(b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 200_000))

            async def all_told() -> Any:
                told = await subscribers(here, gid)
                caught_up = [one for one in told["data"] if one["lag_events"] == 0]
                return told if len(told["data"]) == 3 and len(caught_up) == 2 else None

            told = await wait_until(all_told)
            first, *others = told["data"]
            assert first["lag_events"] > 0
            assert first["unread_bytes"] > 0
            assert first["gateway"] == none["gateways"][0]["gateway"] == told["gateways"][0]["gateway"]
            assert {one["dialect"] for one in others} == {"native", "chat"}
            assert {one["gateway"] for one in others} == {told["gateways"][1]["gateway"]}
            assert [one["subscribers"] for one in told["gateways"]] == [1, 2]
            now = await broker.history.clock.now()
            assert all(now - 300 < one["since"] <= now + 1 for one in told["data"])
        await here.wait_for_subscribers(0)
        await wait_until(lambda: _gone(here, gid))
        assert (await here.http.get(f"/v1/generations/gen_{'0' * 34}/subscribers")).status_code == 404


async def _gone(api: Gateway, gid: str) -> bool:
    return not (await subscribers(api, gid))["data"]

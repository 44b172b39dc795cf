"""A chat stream for clients that parse it line by line: only `data:` lines."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, Writer, gateway, request_body, wait_until, worker
from worker.simulator.text import pieces

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
async def frequent_heartbeats(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway whose streams have a heartbeat every few milliseconds."""
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.03") as started:
        yield started


async def read_naively(api: Gateway, method: str, path: str, body: Any = None) -> tuple[str, list[Any]]:
    """Read the stream as many clients do: each line that is not empty is `data: ` and JSON, up to `[DONE]`. Return the
    generation and the chunks."""
    read: list[Any] = []
    async with api.http.stream(method, path, json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line:
                data = line[len("data: ") :]
                read.append(data if data == "[DONE]" else json.loads(data))
    return response.headers["x-generation-id"], read


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1] if chunk["choices"])


async def test_a_naive_client_can_read_a_bare_stream(
    frequent_heartbeats: Gateway, sim: str, redis: EmbeddedRedis
) -> None:
    body = request_body("[[sim seed=7 length=20 delay=0.5]]", "sim", stream=True)
    usage = {**body, "stream_options": {"include_usage": True}}
    async with worker(redis.url, sim):
        gid, read = await read_naively(frequent_heartbeats, "POST", f"{PATH}?bare=true", body)
        assert (text_of(read), read[-1]) == ("".join(pieces(7, 20)), "[DONE]")
        _, counted = await read_naively(frequent_heartbeats, "POST", f"{PATH}?bare=true", usage)
        assert counted[-2]["usage"]["completion_tokens"] > 0
        _, again = await read_naively(frequent_heartbeats, "GET", f"{PATH}/{gid}?stream=true&bare=true")
        assert [text_of(again), again[-1]] == [text_of(read), "[DONE]"]


async def test_a_bare_stream_has_only_data_lines(frequent_heartbeats: Gateway, broker: Broker) -> None:
    """Compared byte by byte, over silences in which another subscriber of the same log gets heartbeats."""
    writer = await Writer(broker.store.redis, (await frequent_heartbeats.create())["id"]).claim()
    path = f"{PATH}/{writer.gid}?stream=true"
    bare, whole = bytearray(), bytearray()
    async with (
        frequent_heartbeats.http.stream("GET", f"{path}&bare=true") as one,
        frequent_heartbeats.http.stream("GET", path) as other,
    ):
        bytes_of_one, bytes_of_other = one.aiter_raw(), other.aiter_raw()

        async def silence() -> None:
            """Wait until the other subscriber has received three heartbeats."""
            until = whole.count(b": hb") + 3
            while whole.count(b": hb") < until:
                whole.extend(await anext(bytes_of_other))

        await silence()
        await writer.append("Good ")
        await silence()
        await writer.append("morning\u2028\u0085")
        await silence()
        await writer.finish()
        async for data in bytes_of_one:
            bare += data
    *frames, nothing = bytes(bare).split(b"\n\n")
    assert nothing == b""
    assert [frame[:6] for frame in frames] == [b"data: "] * 3
    assert not any(b"\n" in frame for frame in frames)
    assert [json.loads(frame[6:])["choices"][0]["delta"]["content"] for frame in frames[:2]] == [
        "Good ",
        "morning\u2028\u0085",
    ]
    assert frames[2] == b"data: [DONE]"
    assert len(bytes(bare).splitlines()) == len(bytes(bare).decode().splitlines()) == 6


@pytest.mark.parametrize("ending", ["cancel", "delete"])
async def test_a_bare_stream_ends_with_an_error_as_a_data_line(
    frequent_heartbeats: Gateway, broker: Broker, ending: str
) -> None:
    writer = await Writer(broker.store.redis, (await frequent_heartbeats.create())["id"]).claim()
    await writer.append("Good ")
    async with frequent_heartbeats.http.stream("GET", f"{PATH}/{writer.gid}?stream=true&bare=true") as response:
        await wait_until(lambda: response.status_code == 200)
        one = f"/v1/generations/{writer.gid}"
        await (
            frequent_heartbeats.http.post(f"{one}/cancel")
            if ending == "cancel"
            else frequent_heartbeats.http.delete(one)
        )
        lines = [line async for line in response.aiter_lines() if line]
    assert len(lines) == 2
    assert json.loads(lines[1].removeprefix("data: "))["error"]["code"] in ("generation_cancelled", "generation_gone")

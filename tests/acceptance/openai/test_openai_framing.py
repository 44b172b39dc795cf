"""The framing of `/v1/chat/completions` for the unmodified SDKs, whose decoders fail on some valid SSE, and treat a
clean end as success. A scripted worker controls the order of events, and the sent bytes are recorded."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import ALL, Call, Sdk, sdk_named
from tests.servers.tcp import tcp_server
from tests.support import Frame, Gateway, Writer, gateway, request_body, wait_until


@pytest.fixture(scope="module", params=ALL)
async def sdk(request: pytest.FixtureRequest) -> AsyncGenerator[Sdk, None]:
    async with sdk_named(request.param) as started:
        yield started


@dataclass
class Recorder:
    """A proxy in front of a gateway, with the bytes that it has received."""

    url: str
    received: bytearray

    def frames(self) -> list[bytes]:
        """The blocks of the body, without the response headers and the chunked encoding."""
        body = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", b"\r\n" + self.received.partition(b"\r\n\r\n")[2])
        return body.removesuffix(b"\r\n").split(b"\n\n")


@asynccontextmanager
async def recording(api: Gateway) -> AsyncGenerator[Recorder, None]:
    host, port = api.url.removeprefix("http://").split(":")
    received = bytearray()

    async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray | None) -> None:
        with suppress(OSError):  # SDKs drop a connection whose stream they do not read to the end
            while data := await source.read(65536):
                if record is not None:
                    record += data
                sink.write(data)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(forward(reader, up_writer, None), forward(up_reader, writer, received))
        finally:
            up_writer.transport.abort()

    async with tcp_server(serve) as address:
        yield Recorder(f"http://{address}", received)


@dataclass
class Scene:
    """A generation whose worker is the test, and an SDK that streams it through a recorder."""

    api: Gateway
    writer: Writer
    recorder: Recorder
    call: Call

    async def send_text(self, text: str) -> None:
        """Append the text and wait until the caller of the SDK has it."""
        await self.writer.append(text)
        assert (await self.call.chunk())["choices"][0]["delta"]["content"] == text

    async def requeue(self) -> None:
        """Hand the generation over, as a worker does in a deploy."""
        await self.writer.release()


@asynccontextmanager
async def streaming_scene(api: Gateway, broker: Broker, sdk: Sdk) -> AsyncGenerator[Scene, None]:
    """The generation is created natively, so that its worker can begin; the SDK attaches with the same key."""
    body, headers = request_body(), {"idempotency-key": secrets.token_hex(8)}
    async with recording(api) as recorder:
        gid = (await api.create(body, **headers))["id"]
        writer = await Writer(broker.store.redis, gid).claim()
        yield Scene(api, writer, recorder, sdk.start(recorder.url, "stream", extra_headers=headers, **body))


@pytest.fixture
async def scene(api: Gateway, broker: Broker, sdk: Sdk) -> AsyncGenerator[Scene, None]:
    async with streaming_scene(api, broker, sdk) as started:
        yield started


async def test_each_frame_has_only_an_id_and_data(scene: Scene) -> None:
    """The ids are those of the generation. `[DONE]` comes once, last, and only after the end."""
    for text in ("one ", "two ", "three"):
        await scene.send_text(text)
    assert b"[DONE]" not in scene.recorder.received
    await scene.writer.finish()
    result = await scene.call.end()
    assert (result.error, result.text()) == (None, "one two three")
    *frames, rest = scene.recorder.frames()
    assert rest == b""
    ids = [f"id: {scene.writer.attempt}-{seq}".encode() for seq in range(1, 5)]
    assert [frame.split(b"\n")[0] for frame in frames] == ids
    assert [frame.split(b"\n")[1][:6] for frame in frames] == [b"data: "] * 4
    assert [len(frame.split(b"\n")) for frame in frames] == [2] * 4
    assert frames[-1].endswith(b"\ndata: [DONE]")


async def test_clients_accept_heartbeats(redis: EmbeddedRedis, broker: Broker, sdk: Sdk) -> None:
    """Single ones and several in a row, each in the same block as the next frame: as a block of its own after an id, it
    would be a chunk without JSON for openai-python."""
    async with gateway(redis.url, TOKENCAST_HEARTBEAT="0.1") as api, streaming_scene(api, broker, sdk) as scene:
        for number, text in enumerate(["one ", "two ", "three"]):
            await scene.send_text(text)
            heard = scene.recorder.received.count(b": hb\n")
            await wait_until(lambda least=heard + 1 + number: scene.recorder.received.count(b": hb\n") >= least)
        await scene.writer.finish()
        result = await scene.call.end()
    assert (result.error, result.text()) == (None, "one two three")
    *frames, rest = scene.recorder.frames()
    assert rest == b""
    assert len(frames) == 4
    assert all(re.fullmatch(rb"(: hb\n)*id: \d+-\d+\ndata: .+", frame) for frame in frames)
    assert sum(frame.count(b": hb\n") for frame in frames) >= 6


async def test_unicode_line_breaks_are_escaped(scene: Scene) -> None:
    """openai-python before 1.14 splits a stream with `str.splitlines`, for which these characters end a line."""
    text = "a\u2028b\u2029c\u0085d\U0001f30ae"
    await scene.writer.append_raw(f'{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}'.encode())
    await scene.writer.finish()
    result = await scene.call.end()
    assert (result.error, result.text()) == (None, text)
    sent = scene.recorder.received.decode()
    assert not {"\u2028", "\u2029", "\u0085"} & set(sent)
    assert "\U0001f30a" in sent


async def failed(scene: Scene) -> None:
    error = {"message": "It ended \u2028 early.", "type": "server_error", "code": "upstream_truncated"}
    await scene.writer.finish("failed", json.dumps({"error": error}, ensure_ascii=False).encode())


async def cancelled(scene: Scene) -> None:
    await scene.api.http.post(f"/v1/generations/{scene.writer.gid}/cancel")


async def deleted(scene: Scene) -> None:
    await scene.api.http.delete(f"/v1/generations/{scene.writer.gid}")


async def restarted(scene: Scene) -> None:
    await scene.requeue()
    await scene.writer.claim()
    await scene.writer.append("another text")


async def stopped(scene: Scene) -> None:
    scene.api.process.send(signal.SIGTERM)


ENDINGS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "upstream_truncated": failed,
    "generation_cancelled": cancelled,
    "generation_gone": deleted,
    "generation_reset": restarted,
    "server_draining": stopped,
}


@pytest.mark.parametrize("code", ENDINGS)
async def test_every_ending_except_success_raises(
    redis: EmbeddedRedis, api: Gateway, broker: Broker, sdk: Sdk, code: str
) -> None:
    """A stream with text ends with an APIError with a code of its own, never silently or with `[DONE]`."""
    one_to_stop = gateway(redis.url) if code == "server_draining" else nullcontext(api)
    async with one_to_stop as served, streaming_scene(served, broker, sdk) as scene:
        await scene.send_text("A beginning")
        await ENDINGS[code](scene)
        result = await scene.call.end()
    assert result.text() == "A beginning"
    assert result.error is not None
    assert result.error["api_error"]
    assert (result.error["code"], result.error["type"]) == (code, "server_error")
    assert b"[DONE]" not in scene.recorder.received
    *_, last, rest = scene.recorder.frames()
    assert rest == b""
    assert Frame.parse(last).json["error"]["code"] == code


async def test_a_restart_before_any_text_is_invisible(scene: Scene) -> None:
    """Two attempts, the first one without text."""
    await scene.requeue()
    await scene.writer.claim()
    await scene.send_text("whole")
    await scene.writer.finish()
    result = await scene.call.end()
    assert (result.error, result.text()) == (None, "whole")


async def test_a_client_between_two_attempts_reads_the_second(api: Gateway, broker: Broker, sdk: Sdk) -> None:
    """Other clients have received the text of the first attempt; this one has not, and begins with the second."""
    body, headers = request_body(), {"idempotency-key": secrets.token_hex(8)}
    async with recording(api) as recorder:
        writer = await Writer(broker.store.redis, (await api.create(body, **headers))["id"]).claim()
        await writer.append("Half a te")
        scene = Scene(api, writer, recorder, Call())
        await scene.requeue()
        scene.call = sdk.start(recorder.url, "stream", extra_headers=headers, **body)
        await scene.call.wait_for_headers()
        await writer.claim()
        await scene.send_text("A whole text")
        await writer.finish()
        result = await scene.call.end()
    assert (result.error, result.text()) == (None, "A whole text")

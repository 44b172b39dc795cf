"""The Python client against real gateways and workers, sync and async."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.cli.test_cli import scripted_server
from tests.servers.tcp import tcp_server
from tests.support import Gateway, Writer, gather, request_body, service, wait_until
from tokencast_client import (
    AsyncClient,
    BadRequest,
    Client,
    Conflict,
    Event,
    Generation,
    GenerationCancelled,
    Gone,
    NotFound,
    RequestRefused,
    Transcript,
    Unauthorized,
    Unreachable,
    WaitTimeout,
)

PROMPT: list[dict[str, Any]] = [{"role": "user", "content": "Explain the GIL in CPython."}]


UNKNOWN = "gen_01kbn2h8v010" + "0" * 22


async def test_a_completion_in_a_few_lines(running: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a service that has only TOKENCAST_URL and a key."""
    monkeypatch.setenv("TOKENCAST_URL", running.url)
    monkeypatch.setenv("TOKENCAST_API_KEY", "key")

    def sync() -> tuple[Generation, str, list[str]]:
        with Client() as client:
            generation = client.enqueue(model="sim", messages=PROMPT, metadata={"batch": "b1"}, temperature=0.2)
            pieces = [event.text for event in client.follow(generation.id)]
            ended = client.wait(generation.id, timeout=60)
            [listed] = client.list(status=["completed"], metadata={"batch": "b1"})
            assert listed.id == generation.id
            assert client.get(generation.id, include_request=True).request["temperature"] == 0.2  # type: ignore[index]
            *_, last = client.stream_text(generation.id)
            return ended, "".join(pieces), [last, client.text(generation.id)]

    async def not_blocking() -> tuple[Generation, str, list[str]]:
        async with AsyncClient() as client:
            generation = await client.enqueue(model="sim", messages=PROMPT, metadata={"batch": "b2"}, priority=1)
            pieces = [event.text async for event in client.follow(generation.id)]
            ended = await client.wait(generation.id, timeout=60)
            [listed] = [one async for one in client.list(status="completed", metadata={"batch": "b2"})]
            assert (listed.id, listed.priority) == (generation.id, 1)
            texts = [text async for text in client.stream_text(generation.id)]
            return ended, "".join(pieces), [texts[-1], await client.text(generation.id)]

    for ended, text, again in await gather(asyncio.to_thread(sync), not_blocking()):
        assert (ended.status, ended.ended) == ("completed", True)
        assert text == ended.text
        assert again == [text, text]
        assert ended.raw["object"] == "generation"


class Follower:
    """Reads the events of a generation in the background, with one of the two clients."""

    def __init__(self, url: str, gid: str, *, sync: bool) -> None:
        self.events: list[Event] = []
        self.texts: list[str] = []
        self.disconnects: list[str] = []
        follow = asyncio.to_thread(self._follow, url, gid) if sync else self._follow_async(url, gid)
        self.done = asyncio.create_task(follow)

    def _follow(self, url: str, gid: str) -> None:
        with Client(url, "key") as client:
            for event in client.follow(gid, on_disconnect=self.disconnects.append):
                self.events.append(event)

    async def _follow_async(self, url: str, gid: str) -> None:
        async with AsyncClient(url, "key") as client:
            async for event in client.follow(gid, on_disconnect=self.disconnects.append):
                self.events.append(event)

    def has(self, text: str) -> bool:
        transcript = Transcript()
        for event in list(self.events):
            transcript.add(event)
        return transcript.text == text


@pytest.fixture
async def own_broker(own_redis: EmbeddedRedis) -> AsyncGenerator[Broker]:
    async with connect(own_redis.url) as connected:
        yield connected


async def test_a_crash_of_the_gateway_and_a_new_attempt_are_survived(
    own_redis: EmbeddedRedis, own_broker: Broker
) -> None:
    """Each event once, in order; the text after a `reset` replaces the one before. What is enqueued while the gateway
    is down, is enqueued when it is back."""
    port = str(free_port())
    url, keys = f"http://127.0.0.1:{port}", f"anna:{hashlib.sha256(b'key').hexdigest()}"
    variables = {"REDIS_URL": own_redis.url, "PORT": port, "TOKENCAST_API_KEYS": keys, "TOKENCAST_MODELS": "m"}
    gid = (await own_broker.enqueue(request_body(), tenant="anna")).id
    writer = await Writer(own_broker.store.redis, gid).claim()
    async with service("api", **variables) as first:
        await first.says("listening")
        followers = [Follower(url, gid, sync=sync) for sync in (True, False)]
        texts = asyncio.create_task(texts_of(url, gid))
        await writer.append("Half a ", "tru")
        await wait_until(lambda: all(follower.has("Half a tru") for follower in followers))
        first.send(signal.SIGKILL)
        await first.wait()
    async with AsyncClient(url, "key", max_retries=100) as client:
        waiting = asyncio.create_task(client.wait(gid))
        enqueued = asyncio.create_task(client.enqueue(request_body(tokencast={"delay_seconds": 600})))
        await writer.append("th")
        await writer.release()
        await writer.claim()
        await writer.append("The whole truth")
        async with service("api", **variables):
            await wait_until(lambda: all(follower.has("The whole truth") for follower in followers))
            await writer.finish()
            await gather(*(follower.done for follower in followers))
            assert (await waiting).text == "The whole truth"
            seen = await texts
            assert (seen[0][:4], seen[-1], len(seen)) == ("Half", "The whole truth", len(set(seen)))
            assert [one.id async for one in client.list(status="queued")] == [(await enqueued).id]
            page = await client.request("GET", f"/v1/generations/{gid}/events", params={"limit": 100}, headers=AS_JSON)
            async with AsyncClient(url, "wrong") as stranger:
                with pytest.raises(Unauthorized) as refused:
                    await stranger.get(gid)
                assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
                assert str(refused.value.request_id).startswith("req_")
                with pytest.raises(Unauthorized):
                    _ = [event async for event in stranger.follow(gid)]
    for follower in followers:
        assert [(one.cursor, one.name, one.data) for one in follower.events] == [
            (one["id"], one["event"], one["data"]) for one in page["data"]
        ]
        assert "reset" in {one.name for one in follower.events}
        assert len(follower.disconnects) == 1
        assert "no response" in follower.disconnects[0] or "no gateway" in follower.disconnects[0]


AS_JSON = {"accept": "application/json"}


async def texts_of(url: str, gid: str) -> list[str]:
    async with AsyncClient(url, "key") as client:
        return [text async for text in client.stream_text(gid)]


async def test_streams_that_end_early_are_continued() -> None:
    """Of a gateway that drains (`retry:` and a clean end), is overloaded, or breaks off within an event; a `gap` is
    passed on."""
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    full = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n"

    def event(cursor: str, name: str, data: object) -> bytes:
        return f"id: {cursor}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()

    def chunk(number: int, text: str) -> bytes:
        return event(f"7-{number}", "chunk", {"choices": [{"index": 0, "delta": {"content": text}}]})

    responses = [
        stream + b"\r\nid: 7-0\n\n: hb\n\nretry: 5\n\n",
        stream + b"content-length: 999\r\n\r\n" + chunk(1, "a") + chunk(2, "lost").rstrip(b"\n"),
        full,
        stream + b"\r\n" + event("7-3", "gap", {"requested": "7-1"}) + chunk(4, "b") + b"retry: 5\n\n",
        stream + b"\r\n" + event("7-5", "completed", {}),
        stream + b"\r\nid: 7-5\n\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ]

    def read(url: str) -> list[Event]:
        with Client(url, max_retries=0) as client:
            first = list(client.follow("gen_x", "latest"))
            return [*first, *client.follow("gen_x", first[-1].cursor)]

    async with scripted_server(responses) as (url, requests):
        events = await asyncio.to_thread(read, url)
    assert [event.name for event in events] == ["chunk", "gap", "chunk", "completed"]
    assert "".join(event.text for event in events) == "ab"
    resumed = [
        line for request in requests for line in request.lower().split("\r\n") if line.startswith("last-event-id")
    ]
    assert resumed == [f"last-event-id: 7-{number}" for number in (0, 1, 1, 4, 5)]


async def test_a_request_whose_response_was_lost_is_not_done_twice(api: Gateway) -> None:
    """The connection breaks after the gateway has accepted it."""
    host, port = api.url.removeprefix("http://").split(":")
    forwarded: list[bytes] = []

    async def relay(reader: StreamReader, writer: StreamWriter) -> None:
        request = await reader.read(1 << 16)
        forwarded.append(request)
        from_gateway, to_gateway = await asyncio.open_connection(host, int(port))
        to_gateway.write(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        response = await from_gateway.read()
        if len(forwarded) % 2 == 0:
            writer.write(response)
        writer.close()
        to_gateway.close()

    async with tcp_server(relay) as address, AsyncClient(f"http://{address}") as client:
        generation = await client.enqueue(request_body(), group="once")
        items = await client.enqueue_batch([request_body(tokencast={"group": "once"}), {}])
        assert await client.delete(generation.id) is None
    assert len(forwarded) == 6
    assert isinstance(items[1], BadRequest)
    async with AsyncClient(api.url) as client:
        left = [one.id async for one in client.list(group="once")]
    assert left == [item.id for item in items if isinstance(item, Generation)]


async def test_errors_are_typed(api: Gateway) -> None:
    async with AsyncClient(api.url) as client:
        gone = await client.enqueue(request_body())
        await client.delete(gone.id)
        waits = await client.enqueue(model="m", messages=PROMPT, idempotency_key="k", delay_seconds=600)
        other = request_body("Another prompt.")
        expected: list[tuple[type[RequestRefused], str, str | None, Any]] = [
            (NotFound, "generation_not_found", "id", client.get(UNKNOWN)),
            (NotFound, "generation_not_found", "id", client.wait(UNKNOWN)),
            (NotFound, "model_not_found", "model", client.enqueue(model="no-such", messages=PROMPT)),
            (Gone, "generation_gone", "id", client.get(gone.id)),
            (Conflict, "idempotency_conflict", "idempotency-key", client.enqueue(other, idempotency_key="k")),
            (Conflict, "not_ended", "id", client.retry(waits.id)),
            (BadRequest, "invalid_option", "tokencast.priority", client.enqueue(request_body(), priority=9)),
        ]
        for kind, code, param, call in expected:
            with pytest.raises(kind) as error:
                await call
            assert (error.value.code, error.value.param, type(error.value)) == (code, param, kind)
        with pytest.raises(WaitTimeout):
            await client.wait(waits.id, timeout=0.2)
        with pytest.raises(WaitTimeout):
            await asyncio.to_thread(Client(api.url).wait, waits.id, timeout=0.2)
        await client.cancel(waits.id)
        with pytest.raises(GenerationCancelled) as cancelled:
            await client.text(waits.id)
        assert cancelled.value.generation.id == waits.id
    nowhere = f"http://127.0.0.1:{free_port()}"
    calls: list[Callable[[Client], Any]] = [
        lambda client: client.get(UNKNOWN),
        lambda client: list(client.follow(UNKNOWN)),
    ]
    for call in calls:
        with Client(nowhere, max_retries=1) as lonely, pytest.raises(Unreachable, match="no gateway at"):
            await asyncio.to_thread(call, lonely)


async def test_activity_and_several_generations(running: Gateway) -> None:
    """The activity reports what happens from its opening on; several generations are followed on one connection."""
    async with AsyncClient(running.url) as client:
        activity = client.activity("latest", group="several", opening=True)
        opening = await anext(activity)
        assert (opening.raw, opening.generation) == ("", "")
        bodies = [request_body(model="sim", tokencast={"group": "several"}) for _ in range(2)]
        items = await client.enqueue_batch(bodies)
        gids = {item.id for item in items if isinstance(item, Generation)}
        followed = [event async for event in client.follow_all(sorted(gids))]
        assert {event.generation for event in followed} == gids
        assert [event.name for event in followed].count("completed") == 2
        completed: set[str] = set()
        async for event in activity:
            if event.name == "completed":
                assert event.data["status"] == "completed"
                completed.add(event.generation)
            if completed == gids:
                break
        await activity.aclose()
        assert (await client.group("several")).counts["completed"] == 2
        result = await client.retry_all(status="completed", group="several", dry_run=True)
        assert (result.matched, result.retried, len(result.data)) == (2, 0, 2)
        assert [upstream.name for upstream in await client.upstreams()] == ["default"]
        assert (await client.queue()).paused == []

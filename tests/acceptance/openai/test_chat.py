"""`/v1/chat/completions` without an SDK: attaching to generations, disconnects, stored completions, and resuming."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import (
    DEADLINE,
    Frame,
    Gateway,
    Writer,
    gateway,
    gather,
    request_body,
    texts,
    wait_until,
    worker,
)
from worker.simulator.text import pieces

PATH = "/v1/chat/completions"
WORDS = ["one ", "two ", "three ", "four"]


@pytest.fixture(scope="module")
async def running(sim: str) -> AsyncGenerator[Gateway, None]:
    """A gateway with a worker; `api` has none."""
    async with EmbeddedRedis() as redis, gateway(redis.url) as api, worker(redis.url, sim):
        yield api


def sim_request(directive: str, **more: Any) -> dict[str, Any]:
    return request_body(f"[[sim seed=7 {directive}]]", model="sim", **more)


async def post(api: Gateway, body: dict[str, Any], **headers: str) -> list[Frame]:
    return [frame async for frame in api.stream("POST", PATH, json={**body, "stream": True}, headers=headers)]


async def read(api: Gateway, gid: str, query: str = "") -> list[Frame]:
    return [frame async for frame in api.stream("GET", f"{PATH}/{gid}?stream=true{query}")]


async def calls(api: Gateway, sim: str, label: str) -> list[dict[str, Any]]:
    return (await api.http.get(f"{sim.removesuffix('/v1')}/sim/calls?label={label}")).json()


async def running_generation(api: Gateway, broker: Broker, *words: str) -> Writer:
    """A running generation with these words."""
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    if words:
        await writer.append(*words)
    return writer


async def requeue(writer: Writer) -> None:
    await writer.release()


async def test_a_repeated_request_attaches_to_the_generation(running: Gateway, sim: str) -> None:
    """With and without streaming, concurrently and later: one generation, one upstream call, one text."""
    body, headers = sim_request("length=30 speed=300 label=attached"), {"idempotency-key": "attached"}
    whole = running.http.post(PATH, json=body, headers=headers)
    usage = {**body, "stream_options": {"include_usage": True}}
    first, second, answer = await gather(post(running, body, **headers), post(running, usage, **headers), whole)
    later = await running.http.post(PATH, json=body, headers=headers)
    assert texts(first) == texts(second) == "".join(pieces(7, 30))
    assert answer.json() == later.json()
    assert later.json()["choices"][0]["message"]["content"] == texts(first)
    assert (later.headers["x-generation-id"], later.headers["idempotent-replayed"]) == (later.json()["id"], "true")
    assert texts(await post(running, body, **headers)) == texts(first)
    assert len(await calls(running, sim, "attached")) == 1


async def test_a_disconnected_stream_does_not_stop_its_generation(running: Gateway, sim: str) -> None:
    body = {**sim_request("length=60 speed=300 label=left-stream"), "stream": True}
    async with running.http.stream("POST", PATH, json=body) as response, aclosing(response.aiter_raw()) as data:
        await anext(data)
    generation = await running.ended(response.headers["x-generation-id"])
    assert (generation["status"], generation["text"]) == ("completed", "".join(pieces(7, 60)))
    assert [call["outcome"] for call in await calls(running, sim, "left-stream")] == ["completed"]


async def test_a_disconnected_request_does_not_stop_its_generation(running: Gateway, sim: str) -> None:
    body = sim_request("length=60 speed=300 label=left-whole", metadata={"test": "left-whole"})
    waiting = asyncio.create_task(running.http.post(PATH, json=body))

    async def running_generations() -> list[dict[str, Any]]:
        listed = (await running.http.get("/v1/generations?status=in_progress")).json()["data"]
        return [one for one in listed if one["metadata"] == body["metadata"]]

    [generation] = await wait_until(running_generations)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    generation = await running.ended(generation["id"])
    assert (generation["status"], generation["text"]) == ("completed", "".join(pieces(7, 60)))
    assert [call["outcome"] for call in await calls(running, sim, "left-whole")] == ["completed"]


async def test_a_completion_is_stored(running: Gateway) -> None:
    """Unchanged, under its own id."""
    answer = await running.http.post(PATH, json=sim_request("length=8 tools=1 speed=0", n=2))
    stored = await running.http.get(f"{PATH}/{answer.json()['id']}")
    assert stored.json() == answer.json()
    assert len(stored.json()["choices"]) == 2


async def test_a_completion_is_partial_while_it_runs(api: Gateway, broker: Broker) -> None:
    writer = await running_generation(api, broker, "one ", "two ")
    partial = (await api.http.get(f"{PATH}/{writer.gid}")).json()
    assert (partial["object"], partial["id"], partial["usage"]) == ("chat.completion", writer.gid, None)
    [choice] = partial["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two ", None)


async def test_a_stored_stream_is_equal_to_the_live_one(running: Gateway) -> None:
    """The same bytes including ids, with and without usage."""
    body, headers = sim_request("length=30 speed=600"), {"idempotency-key": "live"}
    live = await post(running, body, **headers)
    gid = (await running.http.post(PATH, json=body, headers=headers)).json()["id"]
    assert await read(running, gid) == live
    counted = await read(running, gid, "&include_usage=true")
    assert [frame for frame in counted if not (frame.data or "").endswith("[DONE]") and not frame.json["choices"]]
    assert [frame for frame in counted if frame in live] == live


@pytest.mark.parametrize("usage", ["auto", "never"])
async def test_a_client_resumes_after_any_frame(running: Gateway, usage: str) -> None:
    """With the id of any frame; after the last one it gets the end again."""
    answer = await running.http.post(PATH, json=sim_request(f"length=12 speed=0 usage={usage}"))
    gid, query = answer.json()["id"], "&include_usage=true"
    everything = await read(running, gid, query)
    assert everything[-1].data == "[DONE]"
    assert everything[-2].json["usage"]["completion_tokens"] == 12
    ids = [frame.id for frame in everything]
    assert None not in ids
    for cursor in ids[:-1]:
        assert await read(running, gid, f"{query}&after={cursor}") == everything[ids.index(cursor) + 1 :]
    assert (await read(running, gid, f"&after={ids[-1]}")) == everything[-1:]


async def test_a_client_resumes_a_running_generation(api: Gateway, broker: Broker) -> None:
    writer = await running_generation(api, broker, "one ", "two ")
    async with aclosing(api.stream("GET", f"{PATH}/{writer.gid}?stream=true&after={writer.attempt}-1")) as stream:
        assert texts([await anext(stream)]) == "two "
        await writer.append("three")
        await writer.finish()
        rest = [frame async for frame in stream]
    assert (texts(rest), rest[-1].data) == ("three", "[DONE]")


@pytest.mark.parametrize("cursor", ["0-0", "0-1"])
async def test_a_client_can_begin_before_the_first_attempt(api: Gateway, broker: Broker, cursor: str) -> None:
    """Ids of the native stream before the first text."""
    writer = await running_generation(api, broker, *WORDS)
    await writer.finish()
    frames = await read(api, writer.gid, f"&after={cursor}")
    assert (texts(frames), frames[-1].data) == ("".join(WORDS), "[DONE]")


async def test_a_cursor_of_another_attempt_is_answered_with_a_reset(api: Gateway, broker: Broker) -> None:
    """Its text cannot be continued. A client without text reads the current attempt."""
    writer = await running_generation(api, broker, "Half a te")
    cursor = f"{writer.attempt}-1"
    await requeue(writer)
    await writer.claim()
    await writer.append("A whole text")
    await writer.finish()
    [frame] = await read(api, writer.gid, f"&after={cursor}")
    assert frame.json["error"]["code"] == "generation_reset"
    frames = await read(api, writer.gid)
    assert (texts(frames), frames[-1].data) == ("A whole text", "[DONE]")


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "99999999999999999-1", "5-5", "{attempt}-99", "9000000000000000-0"])
@pytest.mark.parametrize("ended", [True, False])
async def test_an_unknown_cursor_is_refused(api: Gateway, broker: Broker, cursor: str, ended: bool) -> None:
    """No event would follow, and for an SDK the silent end of a stream means success."""
    writer = await running_generation(api, broker, *WORDS)
    if ended:
        await writer.finish()
    after = cursor.format(attempt=writer.attempt)
    response = await api.http.get(f"{PATH}/{writer.gid}?stream=true&after={after}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_cursor", "after")


@pytest.mark.parametrize(("status", "code"), [("failed", "upstream_truncated"), ("cancelled", "generation_cancelled")])
async def test_a_stored_failure_is_an_error(api: Gateway, broker: Broker, status: str, code: str) -> None:
    """Its text can be streamed, and the stream ends with the error."""
    writer = await running_generation(api, broker, *WORDS)
    if status == "failed":
        await writer.finish("failed", json.dumps({"error": {"message": "It broke.", "code": code}}).encode())
    else:
        await api.http.post(f"/v1/generations/{writer.gid}/cancel")
    whole = await api.http.get(f"{PATH}/{writer.gid}")
    assert (whole.status_code, whole.json()["error"]["code"]) == (502 if status == "failed" else 409, code)
    frames = await read(api, writer.gid)
    assert texts(frames[:-1]) == "".join(WORDS)
    assert frames[-1].json["error"]["code"] == code


async def test_head_of_a_stream_has_no_body(api: Gateway, broker: Broker) -> None:
    """The connection remains usable."""
    writer = await running_generation(api, broker, *WORDS)
    await writer.finish()
    for _ in range(2):
        assert (await api.http.head(f"{PATH}/{writer.gid}?stream=true")).content == b""
    assert (await api.http.get("/healthz")).status_code == 200


async def test_a_stopping_gateway_accepts_no_request(redis: EmbeddedRedis) -> None:
    """The request was not accepted, so an SDK may repeat it, and another gateway accepts it."""
    async with gateway(redis.url) as api:
        host, port = api.url.removeprefix("http://").split(":")
        body = json.dumps(request_body(metadata={"test": "late"})).encode()
        reader, sender = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        sender.write(head.encode())
        async with asyncio.timeout(DEADLINE):
            assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
            api.process.send(signal.SIGTERM)
            await api.process.says("stopping")
            sender.write(body)
            answer = await reader.read()
        sender.close()
        await sender.wait_closed()
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"\r\nretry-after: 1" in head.lower()
    assert b"x-should-retry" not in head.lower()
    assert json.loads(content)["error"]["code"] == "server_draining"
    async with gateway(redis.url) as other:
        listed = (await other.http.get("/v1/generations?limit=100")).json()["data"]
    assert {"test": "late"} not in [generation["metadata"] for generation in listed]


async def test_a_permanent_refusal_has_its_status_even_for_a_stream(running: Gateway) -> None:
    """With default settings, the worker stops retrying before the gateway sends the status line."""
    faults = {"fault=429": 429, "fault=429 retry_after=1": 429, "fault=503": 502, "fault=500": 502}
    posts = [running.http.post(PATH, json=sim_request(directive, stream=True)) for directive in faults]
    for response, status in zip(await gather(*posts), faults.values(), strict=True):
        assert response.status_code == status
        assert response.headers["x-should-retry"] == "false"
        assert ("retry-after" in response.headers) == (status == 429)

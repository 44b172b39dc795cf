"""One `Idempotency-Key` is one generation: every repetition of a request, in any form, at any gateway and after any
failure, gets the result of the same upstream call."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.queue.commands import OFFER
from broker.queue.quotas import OPEN_TENANT
from broker.store import keys
from broker.store.commands import CREATE
from tests.servers.redis_proxy import redis_proxy
from tests.support import Frame, Gateway, gateway, gather, request_body, texts, upstream_calls, wait_until, worker
from worker.simulator.text import pieces

CHAT = "/v1/chat/completions"
Callback = Callable[[], None]


@dataclass(frozen=True)
class Result:
    """The response that one caller received."""

    gid: str
    replayed: bool
    text: str
    frames: list[Frame]

    @property
    def names(self) -> list[str]:
        """The names of native events, or the errors and the end of a chat stream."""
        return [frame.event or error_of(frame) for frame in self.frames]


def error_of(frame: Frame) -> str:
    if frame.data in (None, "[DONE]"):
        return frame.data or ""
    return frame.json.get("error", {}).get("code", "")


def sim_request(directive: str, **more: Any) -> dict[str, Any]:
    return request_body(f"[[sim {directive}]]", model="sim", **more)


async def native(api: Gateway, body: dict[str, Any], on_text: Callback = lambda: None, **headers: str) -> Result:
    response = await api.http.post("/v1/generations", json=body, headers=headers)
    gid, replayed = response.json()["id"], "idempotent-replayed" in response.headers
    assert response.status_code == (200 if replayed else 202), response.text
    async with api.http.stream("GET", f"/v1/generations/{gid}/events") as events:
        frames = await read(events, on_text)
    kept = max((at for at, frame in enumerate(frames) if frame.event == "reset"), default=0)
    return Result(gid, replayed, texts(frames[kept:]), frames)


async def whole(api: Gateway, body: dict[str, Any], on_text: Callback = lambda: None, **headers: str) -> Result:
    on_text()
    response = await api.http.post(CHAT, json=body, headers=headers)
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    return Result(response.json()["id"], "idempotent-replayed" in response.headers, text, [])


async def streamed(api: Gateway, body: dict[str, Any], on_text: Callback = lambda: None, **headers: str) -> Result:
    async with api.http.stream("POST", CHAT, json={**body, "stream": True}, headers=headers) as response:
        frames = await read(response, on_text)
    gid, replayed = response.headers["x-generation-id"], "idempotent-replayed" in response.headers
    return Result(gid, replayed, texts([frame for frame in frames if not error_of(frame)]), frames)


async def read(response: httpx2.Response, on_text: Callback) -> list[Frame]:
    """All frames; `on_text` is called when the first text has arrived."""
    assert response.status_code == 200, await response.aread()
    frames, buffer = list[Frame](), b""
    async for data in response.aiter_raw():
        *blocks, buffer = (buffer + data).split(b"\n\n")
        new = [frame for frame in map(Frame.parse, blocks) if frame.data]
        if not texts(frames) and texts([frame for frame in new if not error_of(frame)]):
            on_text()
        frames += new
    return frames


async def streamed_with_usage(
    api: Gateway, body: dict[str, Any], on_text: Callback = lambda: None, **headers: str
) -> Result:
    return await streamed(api, {**body, "stream_options": {"include_usage": True}}, on_text, **headers)


FORMS: tuple[Callable[..., Awaitable[Result]], ...] = (native, whole, streamed, streamed_with_usage)


async def refusal(response: Awaitable[httpx2.Response]) -> tuple[int, str, str | None]:
    answer = await response
    return answer.status_code, answer.json()["error"]["code"], answer.headers.get("x-should-retry")


@asynccontextmanager
async def two_gateways(redis: EmbeddedRedis, **variables: str) -> AsyncGenerator[tuple[Gateway, Gateway], None]:
    async with gateway(redis.url, **variables) as one, gateway(redis.url, **variables) as two:
        yield one, two


@pytest.fixture(scope="module")
async def both(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[tuple[Gateway, Gateway], None]:
    """Two gateways and a worker."""
    async with two_gateways(redis) as gateways, worker(redis.url, sim):
        yield gateways


async def listed(api: Gateway, order: str, **headers: str) -> list[dict[str, Any]]:
    """The generations with this order in their metadata."""
    page = (await api.http.get("/v1/generations?limit=100", headers=headers)).json()["data"]
    return [generation for generation in page if generation["metadata"].get("order") == order]


# --- concurrent repetitions ----------------------------------------------------------------------------------------


async def test_a_hundred_concurrent_requests_are_one_call(both: tuple[Gateway, Gateway], sim: str) -> None:
    """In four forms, at two gateways: one request begins the generation, all get the same text, and each form the same
    bytes."""
    body, key = sim_request("seed=11 length=40 speed=80 label=hundred", metadata={"order": "hundred"}), "hundred"
    posts = [FORMS[n // 2 % 4](both[n % 2], body, **{"idempotency-key": key}) for n in range(100)]
    results: list[Result] = await gather(*posts)
    assert len({one.gid for one in results}) == 1
    assert [one.replayed for one in results].count(False) == 1
    assert {one.text for one in results} == {"".join(pieces(11, 40))}
    for form, end in ((0, "completed"), (2, "[DONE]"), (3, "[DONE]")):
        streams = [results[n].frames for n in range(100) if n // 2 % 4 == form]
        assert all(stream == streams[0] for stream in streams)
        assert [frame.event or frame.data for frame in streams[0]][-1] == end
    [call] = await upstream_calls(sim, "hundred")
    assert call["outcome"] == "completed"
    assert len(await listed(both[0], "hundred")) == 1


async def test_one_of_two_concurrent_bodies_wins(both: tuple[Gateway, Gateway], sim: str) -> None:
    """Requests with the other body are refused and told not to retry."""
    bodies = [sim_request("length=5 speed=0 label=two", metadata={"order": "two", "body": str(n)}) for n in range(2)]

    async def post(n: int) -> tuple[int, int, str]:
        path = (CHAT, "/v1/generations")[n // 4 % 2]
        response = await both[n // 2 % 2].http.post(path, json=bodies[n % 2], headers={"idempotency-key": "two"})
        if response.status_code == 422:
            assert response.json()["error"]["code"] == "idempotency_conflict"
            assert response.headers["x-should-retry"] == "false"
        return n % 2, response.status_code, response.headers.get("x-generation-id", "")

    answers = await gather(*(post(n) for n in range(40)))
    winner = next(body for body, status, _ in answers if status != 422)
    for body, status, _ in answers:
        assert (status == 422) == (body != winner)
    assert len({gid for _, status, gid in answers if status != 422}) == 1
    assert len(await listed(both[0], "two")) == 1
    assert len(await upstream_calls(sim, "two")) == 1


async def test_tenants_do_not_share_keys(redis: EmbeddedRedis, sim: str, both: tuple[Gateway, Gateway]) -> None:
    """With the same key and body they get generations of their own, and another body is no conflict."""
    tenants = {t: {"authorization": f"Bearer {t}", "idempotency-key": "shared"} for t in ("anna", "ben", "carl")}
    hashed = ",".join(f"{t}:{hashlib.sha256(t.encode()).hexdigest()}" for t in tenants)
    async with two_gateways(redis, TOKENCAST_API_KEYS=hashed) as gateways:
        same, other = (
            sim_request("seed=1 length=5 speed=0 label=shared"),
            sim_request("seed=2 length=5 speed=0 label=shared"),
        )
        bodies = {"anna": same, "ben": same, "carl": other}
        posts = [whole(api, bodies[t], **headers) for api in gateways for t, headers in tenants.items()]
        results = await gather(*posts)
    assert len({one.gid for one in results}) == 3
    assert [one.text for one in results] == [*["".join(pieces(1, 5))] * 2, "".join(pieces(2, 5))] * 2
    assert len(await upstream_calls(sim, "shared")) == 3


# --- later repetitions ---------------------------------------------------------------------------------------------


async def test_an_ended_generation_is_answered_from_the_log(own_redis: EmbeddedRedis, sim: str) -> None:
    """Also by gateways that never saw it, without a worker, and repeatedly."""
    body, key = sim_request("seed=12 length=20 speed=0 label=later"), {"idempotency-key": "later"}
    async with gateway(own_redis.url) as api, worker(own_redis.url, sim):
        first = await streamed(api, body, **key)
    async with two_gateways(own_redis) as gateways:
        for api in gateways:
            for form in FORMS:
                again = await form(api, body, **key)
                assert (again.gid, again.text, again.replayed) == (first.gid, first.text, True)
        assert (await streamed(gateways[0], body, **key)).frames == first.frames
        shown = await gateways[1].create(body, **key)
        assert (shown["status"], shown["text"]) == ("completed", "".join(pieces(12, 20)))
    assert len(await upstream_calls(sim, "later")) == 1


async def test_a_key_is_free_after_its_generation_is_removed(both: tuple[Gateway, Gateway], sim: str) -> None:
    """After its deletion or the end of its retention, also for another body."""
    body, key = sim_request("seed=13 length=5 speed=0 label=free"), {"idempotency-key": "free"}
    first = (await both[0].create({**body, "ttl_seconds": 1}, **key))["id"]

    async def expired() -> bool:
        return (await both[1].http.get(f"/v1/generations/{first}")).status_code == 410

    await wait_until(expired)
    second = await whole(both[1], body, **key)
    assert (second.replayed, second.gid == first) == (False, False)
    assert (await both[0].http.delete(f"/v1/generations/{second.gid}")).status_code == 204
    third = await streamed(both[0], {**body, "user": "other"}, **key)
    assert (third.replayed, third.gid in (first, second.gid)) == (False, False)
    assert len(await upstream_calls(sim, "free")) == 3


@pytest.mark.parametrize("path", ["/v1/generations", CHAT])
async def test_another_body_is_refused_while_the_key_exists(both: tuple[Gateway, Gateway], path: str) -> None:
    """While it runs and after its end. The form of the response and of the JSON are not part of the body."""
    body, key = (
        sim_request("length=40 speed=80", temperature=0, metadata={"a": "1"}),
        {"idempotency-key": f"body{path}"},
    )
    first = (await both[0].create(body, **key))["id"]
    for moment in ("running", "ended"):
        for change in (
            {"temperature": 1},
            {"metadata": {"a": "2"}},
            {"model": "sim-fast"},
            {"messages": []},
            {"n": 2},
            {"user": "u"},
        ):
            status, code, retry = await refusal(both[1].http.post(path, json={**body, **change}, headers=key))
            expected = (400, "empty_array", None) if "messages" in change else (422, "idempotency_conflict", "false")
            assert (status, code, retry) == expected, (moment, change)
        same = dict(reversed({**body, "stream": False, "stream_options": {"include_usage": True}}.items()))
        assert (await both[1].create(same, **key))["id"] == first
        await both[0].ended(first)


async def test_a_failure_is_replayed(both: tuple[Gateway, Gateway], sim: str) -> None:
    """A failed generation is not run again under its key: the caller gets its error and decides."""
    body, key = sim_request("seed=14 fault=truncate at=5 speed=0 label=failed"), {"idempotency-key": "failed"}
    first = await native(both[0], body, **key)
    assert first.names[-1] == "failed"
    for api in both:
        again = await native(api, body, **key)
        assert (again.gid, again.replayed, again.frames) == (first.gid, True, first.frames)
        assert (await api.create(body, **key))["error"]["code"] == "upstream_truncated"
        assert await refusal(api.http.post(CHAT, json=body, headers=key)) == (502, "upstream_truncated", "false")
        assert (await streamed(api, body, **key)).names[-1] == "upstream_truncated"
    assert len(await upstream_calls(sim, "failed")) == 1


async def test_a_cancellation_is_replayed(both: tuple[Gateway, Gateway], sim: str) -> None:
    body, key = sim_request("fault=stall at=3 speed=0 label=cancelled"), {"idempotency-key": "cancelled"}
    gid = (await both[0].create(body, **key))["id"]
    await wait_until(lambda: upstream_calls(sim, "cancelled"))
    await both[1].http.post(f"/v1/generations/{gid}/cancel")
    for api in both:
        shown = await api.create(body, **key)
        assert (shown["id"], shown["status"]) == (gid, "cancelled")
        assert await refusal(api.http.post(CHAT, json=body, headers=key)) == (409, "generation_cancelled", "false")
    assert len(await upstream_calls(sim, "cancelled")) == 1


# --- failures in between -------------------------------------------------------------------------------------------


async def test_a_killed_worker_costs_one_more_call(own_redis: EmbeddedRedis, sim: str) -> None:
    """In the middle of the stream: native subscribers get `reset` and the complete text after it, chat streams with
    some text get `generation_reset`, and callers without streaming get the text, as does a repeated request. There are
    as many calls as attempts."""
    body = sim_request("seed=15 length=60 speed=0 fault=stall at=10 times=1 label=crash")
    key, lease, on_text = {"idempotency-key": "crash"}, {"TOKENCAST_LEASE": "2"}, list[int]()
    async with two_gateways(own_redis, **lease) as gateways, worker(own_redis.url, sim, **lease) as doomed:
        gid = (await gateways[0].create(body, **key))["id"]
        posts = [FORMS[n // 2 % 4](gateways[n % 2], body, lambda: on_text.append(1), **key) for n in range(40)]
        readers = asyncio.gather(*posts)
        await wait_until(lambda: len(on_text) == 40)
        doomed.send(signal.SIGKILL)
        async with worker(own_redis.url, sim, **lease):
            [results] = await gather(readers)
            again = await gather(*(form(api, body, **key) for api in gateways for form in FORMS))
            generation = await gateways[0].get(gid)
    text = "".join(pieces(15, 60))
    assert {one.gid for one in [*results, *again]} == {gid}
    for number, one in enumerate(results):
        form = FORMS[number // 2 % 4]
        if form is native:
            assert (one.names.count("reset"), one.names[-1], one.text) == (1, "completed", text)
        elif form is whole:
            assert one.text == text
        else:
            assert one.names[-1] == "generation_reset"
            assert one.text == "".join(pieces(15, 60)[:10])
    assert {one.text for one in again} == {text}
    assert (generation["attempt"], len(await upstream_calls(sim, "crash"))) == (2, 2)


@pytest.mark.parametrize("keyed", [True, False])
async def test_a_lost_reply_to_the_creation_creates_no_second_generation(
    own_redis: EmbeddedRedis, sim: str, keyed: bool
) -> None:
    """The caller does not notice, with or without a key: the gateway repeats the command with the same id."""
    order = f"lost-create-{keyed}"
    body = sim_request(f"seed=16 length=10 speed=0 label={order}", metadata={"order": order})
    key = {"idempotency-key": order} if keyed else {}
    async with (
        redis_proxy(own_redis.url) as proxy,
        gateway(proxy.url) as api,
        gateway(own_redis.url) as other,
        worker(own_redis.url, sim),
    ):
        await api.create()  # Redis has loaded the script, so that the lost reply is that of the creation
        proxy.lose_reply_to = CREATE.sha.encode()
        first = await streamed(api, body, **key)
        assert (proxy.lost, first.replayed, first.text) == (1, False, "".join(pieces(16, 10)))
        if keyed:
            again = await gather(*(form(gw, body, **key) for gw in (api, other) for form in FORMS))
            assert {(one.gid, one.text) for one in again} == {(first.gid, first.text)}
        await assert_ran_once(own_redis, other, sim, order)


async def test_a_lost_reply_to_the_offer_writes_no_second_ticket(own_redis: EmbeddedRedis, sim: str) -> None:
    """The caller does not notice either. A ticket that the reaper writes later is the same one, or its generation has
    ended."""
    body = sim_request("seed=17 length=10 speed=0 label=lost-ticket", metadata={"order": "lost-ticket"})
    key = {"idempotency-key": "lost-ticket"}
    async with (
        redis_proxy(own_redis.url) as proxy,
        gateway(proxy.url, TOKENCAST_STREAMS_URL=own_redis.url) as api,
        gateway(own_redis.url) as other,
        connect(own_redis.url) as broker,
    ):
        await api.create()
        proxy.lose_reply_to = OFFER.sha.encode()
        created = await api.create(body, **key)
        assert (created["status"], proxy.lost) == ("queued", 1)
        tickets = await broker.queue.redis.execute("ZRANGE", keys.waiting("default:3", OPEN_TENANT), 0, -1)
        assert len([ticket for ticket in tickets if created["id"].encode() in ticket]) == 1
        assert await broker.queue.depth() == len(tickets) == 2
        async with worker(own_redis.url, sim):
            results = await gather(*(form(gw, body, **key) for gw in (api, other) for form in FORMS))
            assert {(one.gid, one.text) for one in results} == {(created["id"], "".join(pieces(17, 10)))}
            await assert_ran_once(own_redis, other, sim, "lost-ticket")


async def assert_ran_once(redis: EmbeddedRedis, api: Gateway, sim: str, label: str) -> None:
    """One generation, one attempt, one call, and no ticket left that could start another."""
    [generation] = await listed(api, label)
    assert (generation["status"], generation["attempt"]) == ("completed", 1)
    async with connect(redis.url) as broker:

        async def queue_is_empty() -> bool:
            return await broker.queue.depth() == 0

        await wait_until(queue_is_empty)
    assert len(await upstream_calls(sim, label)) == 1

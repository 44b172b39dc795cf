"""One `Idempotency-Key`, one generation: whoever repeats a request, in whatever form, at whichever gateway, whatever
broke in between, is given the answer of the one upstream call there was."""

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
from broker.redis.client import Script
from broker.store import keys
from tests.servers.redis_proxy import redis_proxy
from tests.support import Frame, Gateway, gateway, gather, request_body, texts, upstream_calls, wait_until, worker
from worker.simulator.text import pieces

CHAT = "/v1/chat/completions"
Begun = Callable[[], None]


@dataclass(frozen=True)
class Given:
    """What one of the callers got."""

    gid: str
    replayed: bool
    text: str
    frames: list[Frame]

    @property
    def names(self) -> list[str]:
        """Of native events, or of an OpenAI stream's errors and end."""
        return [frame.event or error_of(frame) for frame in self.frames]


def error_of(frame: Frame) -> str:
    if frame.data in (None, "[DONE]"):
        return frame.data or ""
    return frame.json.get("error", {}).get("code", "")


def asked(directive: str, **more: Any) -> dict[str, Any]:
    return request_body(f"[[sim {directive}]]", model="sim", **more)


async def native(api: Gateway, body: dict[str, Any], begun: Begun = lambda: None, **headers: str) -> Given:
    response = await api.http.post("/v1/generations", json=body, headers=headers)
    gid, replayed = response.json()["id"], "idempotent-replayed" in response.headers
    assert response.status_code == (200 if replayed else 202), response.text
    async with api.http.stream("GET", f"/v1/generations/{gid}/events") as events:
        frames = await read(events, begun)
    kept = max((at for at, frame in enumerate(frames) if frame.event == "reset"), default=0)
    return Given(gid, replayed, texts(frames[kept:]), frames)


async def whole(api: Gateway, body: dict[str, Any], begun: Begun = lambda: None, **headers: str) -> Given:
    begun()
    response = await api.http.post(CHAT, json=body, headers=headers)
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    return Given(response.json()["id"], "idempotent-replayed" in response.headers, text, [])


async def streamed(api: Gateway, body: dict[str, Any], begun: Begun = lambda: None, **headers: str) -> Given:
    async with api.http.stream("POST", CHAT, json={**body, "stream": True}, headers=headers) as response:
        frames = await read(response, begun)
    gid, replayed = response.headers["x-generation-id"], "idempotent-replayed" in response.headers
    return Given(gid, replayed, texts([frame for frame in frames if not error_of(frame)]), frames)


async def read(response: httpx2.Response, begun: Begun) -> list[Frame]:
    """All frames; `begun` is told once there is some text."""
    assert response.status_code == 200, await response.aread()
    frames, buffer = list[Frame](), b""
    async for data in response.aiter_raw():
        *blocks, buffer = (buffer + data).split(b"\n\n")
        new = [frame for frame in map(Frame.parse, blocks) if frame.data]
        if not texts(frames) and texts([frame for frame in new if not error_of(frame)]):
            begun()
        frames += new
    return frames


async def counted(api: Gateway, body: dict[str, Any], begun: Begun = lambda: None, **headers: str) -> Given:
    return await streamed(api, {**body, "stream_options": {"include_usage": True}}, begun, **headers)


FORMS: tuple[Callable[..., Awaitable[Given]], ...] = (native, whole, streamed, counted)


async def refused(response: Awaitable[httpx2.Response]) -> tuple[int, str, str | None]:
    answer = await response
    return answer.status_code, answer.json()["error"]["code"], answer.headers.get("x-should-retry")


@asynccontextmanager
async def two_gateways(redis: EmbeddedRedis, **variables: str) -> AsyncGenerator[tuple[Gateway, Gateway], None]:
    async with gateway(redis.url, **variables) as one, gateway(redis.url, **variables) as two:
        yield one, two


@pytest.fixture(scope="module")
async def both(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[tuple[Gateway, Gateway], None]:
    """Two gateways with a worker behind them."""
    async with two_gateways(redis) as gateways, worker(redis.url, sim):
        yield gateways


async def listed(api: Gateway, order: str, **headers: str) -> list[dict[str, Any]]:
    """The generations with this in their metadata."""
    page = (await api.http.get("/v1/generations?limit=100", headers=headers)).json()["data"]
    return [generation for generation in page if generation["metadata"].get("order") == order]


# --- repeated at once -----------------------------------------------------------------------------------------


async def test_a_hundred_at_once_are_one_call(both: tuple[Gateway, Gateway], sim: str) -> None:
    """In four forms, at two gateways: one of them began it, all have the same text, and each form the same bytes."""
    body, key = asked("seed=11 length=40 speed=80 label=hundred", metadata={"order": "hundred"}), "hundred"
    posts = [FORMS[n // 2 % 4](both[n % 2], body, **{"idempotency-key": key}) for n in range(100)]
    given: list[Given] = await gather(*posts)
    assert len({one.gid for one in given}) == 1
    assert [one.replayed for one in given].count(False) == 1
    assert {one.text for one in given} == {"".join(pieces(11, 40))}
    for form, end in ((0, "completed"), (2, "[DONE]"), (3, "[DONE]")):
        streams = [given[n].frames for n in range(100) if n // 2 % 4 == form]
        assert all(stream == streams[0] for stream in streams)
        assert [frame.event or frame.data for frame in streams[0]][-1] == end
    [call] = await upstream_calls(sim, "hundred")
    assert call["outcome"] == "completed"
    assert len(await listed(both[0], "hundred")) == 1


async def test_of_two_bodies_at_once_one_wins(both: tuple[Gateway, Gateway], sim: str) -> None:
    """Everybody with the other one is refused, and told not to try again."""
    bodies = [asked("length=5 speed=0 label=two", metadata={"order": "two", "body": str(n)}) for n in range(2)]

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
    """The same key and body is another generation, and another body no conflict."""
    tenants = {t: {"authorization": f"Bearer {t}", "idempotency-key": "shared"} for t in ("anna", "ben", "carl")}
    hashed = ",".join(f"{t}:{hashlib.sha256(t.encode()).hexdigest()}" for t in tenants)
    async with two_gateways(redis, TOKENCAST_API_KEYS=hashed) as gateways:
        same, other = asked("seed=1 length=5 speed=0 label=shared"), asked("seed=2 length=5 speed=0 label=shared")
        bodies = {"anna": same, "ben": same, "carl": other}
        posts = [whole(api, bodies[t], **headers) for api in gateways for t, headers in tenants.items()]
        given = await gather(*posts)
    assert len({one.gid for one in given}) == 3
    assert [one.text for one in given] == [*["".join(pieces(1, 5))] * 2, "".join(pieces(2, 5))] * 2
    assert len(await upstream_calls(sim, "shared")) == 3


# --- repeated later -------------------------------------------------------------------------------------------


async def test_an_ended_generation_is_answered_from_the_log(own_redis: EmbeddedRedis, sim: str) -> None:
    """Also by gateways that never saw it, with no worker, and as often as it is asked for."""
    body, key = asked("seed=12 length=20 speed=0 label=later"), {"idempotency-key": "later"}
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


async def test_a_key_is_free_again_with_its_generation(both: tuple[Gateway, Gateway], sim: str) -> None:
    """Once it was deleted, or its retention is over: then also for another body."""
    body, key = asked("seed=13 length=5 speed=0 label=free"), {"idempotency-key": "free"}
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
async def test_another_body_is_refused_while_the_key_stands(both: tuple[Gateway, Gateway], path: str) -> None:
    """Running or ended. How the answer is wanted, and how the JSON is written, is not part of the body."""
    body, key = asked("length=40 speed=80", temperature=0, metadata={"a": "1"}), {"idempotency-key": f"body{path}"}
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
            status, code, retry = await refused(both[1].http.post(path, json={**body, **change}, headers=key))
            expected = (400, "empty_array", None) if "messages" in change else (422, "idempotency_conflict", "false")
            assert (status, code, retry) == expected, (moment, change)
        same = dict(reversed({**body, "stream": False, "stream_options": {"include_usage": True}}.items()))
        assert (await both[1].create(same, **key))["id"] == first
        await both[0].ended(first)


async def test_a_failure_is_the_answer_too(both: tuple[Gateway, Gateway], sim: str) -> None:
    """A failed generation is not tried again under its key: the caller has its error, and decides."""
    body, key = asked("seed=14 fault=truncate at=5 speed=0 label=failed"), {"idempotency-key": "failed"}
    first = await native(both[0], body, **key)
    assert first.names[-1] == "failed"
    for api in both:
        again = await native(api, body, **key)
        assert (again.gid, again.replayed, again.frames) == (first.gid, True, first.frames)
        assert (await api.create(body, **key))["error"]["code"] == "upstream_truncated"
        assert await refused(api.http.post(CHAT, json=body, headers=key)) == (502, "upstream_truncated", "false")
        assert (await streamed(api, body, **key)).names[-1] == "upstream_truncated"
    assert len(await upstream_calls(sim, "failed")) == 1


async def test_a_cancel_is_the_answer_too(both: tuple[Gateway, Gateway], sim: str) -> None:
    body, key = asked("fault=stall at=3 speed=0 label=cancelled"), {"idempotency-key": "cancelled"}
    gid = (await both[0].create(body, **key))["id"]
    await wait_until(lambda: upstream_calls(sim, "cancelled"))
    await both[1].http.post(f"/v1/generations/{gid}/cancel")
    for api in both:
        shown = await api.create(body, **key)
        assert (shown["id"], shown["status"]) == (gid, "cancelled")
        assert await refused(api.http.post(CHAT, json=body, headers=key)) == (409, "generation_cancelled", "false")
    assert len(await upstream_calls(sim, "cancelled")) == 1


# --- with something broken in between -------------------------------------------------------------------------


async def test_a_killed_worker_costs_one_more_call(own_redis: EmbeddedRedis, sim: str) -> None:
    """In mid-stream: native readers get `reset` and the whole text behind it, an OpenAI stream that was given some
    `generation_reset`, who waits for the whole answer has it, and who repeats the request too. As many calls as
    attempts."""
    body = asked("seed=15 length=60 speed=0 fault=stall at=10 times=1 label=crash")
    key, lease, begun = {"idempotency-key": "crash"}, {"TOKENCAST_LEASE": "2"}, list[int]()
    async with two_gateways(own_redis, **lease) as gateways, worker(own_redis.url, sim, **lease) as doomed:
        gid = (await gateways[0].create(body, **key))["id"]
        posts = [FORMS[n // 2 % 4](gateways[n % 2], body, lambda: begun.append(1), **key) for n in range(40)]
        readers = asyncio.gather(*posts)
        await wait_until(lambda: len(begun) == 40)
        doomed.send(signal.SIGKILL)
        async with worker(own_redis.url, sim, **lease):
            [given] = await gather(readers)
            again = await gather(*(form(api, body, **key) for api in gateways for form in FORMS))
            generation = await gateways[0].get(gid)
    text = "".join(pieces(15, 60))
    assert {one.gid for one in [*given, *again]} == {gid}
    for number, one in enumerate(given):
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
async def test_a_lost_reply_to_the_create_is_no_second_one(own_redis: EmbeddedRedis, sim: str, keyed: bool) -> None:
    """The caller does not notice, key or no key: the gateway asks again, under the same id."""
    order = f"lost-create-{keyed}"
    body = asked(f"seed=16 length=10 speed=0 label={order}", metadata={"order": order})
    key = {"idempotency-key": order} if keyed else {}
    async with (
        redis_proxy(own_redis.url) as proxy,
        gateway(proxy.url) as api,
        gateway(own_redis.url) as other,
        worker(own_redis.url, sim),
    ):
        await api.create()  # Redis knows the script now, so that the reply is the create's
        proxy.lose_reply_to = Script("store", "create").sha.encode()
        first = await streamed(api, body, **key)
        assert (proxy.lost, first.replayed, first.text) == (1, False, "".join(pieces(16, 10)))
        if keyed:
            again = await gather(*(form(gw, body, **key) for gw in (api, other) for form in FORMS))
            assert {(one.gid, one.text) for one in again} == {(first.gid, first.text)}
        await ran_once(own_redis, other, sim, order)


async def test_a_lost_reply_to_the_ticket_is_no_second_one(own_redis: EmbeddedRedis, sim: str) -> None:
    """Nor does the caller notice that; a ticket that the reaper writes later is the same, or finds it ended."""
    body = asked("seed=17 length=10 speed=0 label=lost-ticket", metadata={"order": "lost-ticket"})
    key = {"idempotency-key": "lost-ticket"}
    async with (
        redis_proxy(own_redis.url) as proxy,
        gateway(proxy.url, TOKENCAST_STREAMS_URL=own_redis.url) as api,
        gateway(own_redis.url) as other,
        connect(own_redis.url) as broker,
    ):
        await api.create()
        proxy.lose_reply_to = Script("queue", "enqueue").sha.encode()
        created = await api.create(body, **key)
        assert (created["status"], proxy.lost) == ("queued", 1)
        tickets = await broker.queue.redis.execute("ZRANGE", keys.QUEUE, 0, -1)
        assert len([ticket for ticket in tickets if created["id"].encode() in ticket]) == 1
        async with worker(own_redis.url, sim):
            given = await gather(*(form(gw, body, **key) for gw in (api, other) for form in FORMS))
            assert {(one.gid, one.text) for one in given} == {(created["id"], "".join(pieces(17, 10)))}
            await ran_once(own_redis, other, sim, "lost-ticket")


async def ran_once(redis: EmbeddedRedis, api: Gateway, sim: str, label: str) -> None:
    """One generation, one attempt, one call, and no ticket left that could become another."""
    [generation] = await listed(api, label)
    assert (generation["status"], generation["attempt"]) == ("completed", 1)
    async with connect(redis.url) as broker:

        async def nothing_waits() -> bool:
            return await broker.queue.depth() == 0

        await wait_until(nothing_waits)
    assert len(await upstream_calls(sim, label)) == 1

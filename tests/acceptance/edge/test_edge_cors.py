"""Which pages may call from a browser: exactly the origins that are listed, and nobody where none is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.edge.peer import listed, new_one
from tests.support import Gateway, Writer, gateway, request_body

LISTED = ("https://app.example", "http://localhost:3000")
FOREIGN = ("https://evil.example", "https://app.example.evil.example", "http://app.example", "null", "*")
SENT = "authorization, content-type, idempotency-key, last-event-id"
READ = {"idempotent-replayed", "location", "retry-after", "x-generation-id", "x-request-id", "x-should-retry"}
BY_SDKS = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count,openai-beta"
)
BY_TRACING = "baggage, cache-control, content-type, traceparent, tracestate, x-b3-traceid, x-requested-with"


@pytest.fixture(scope="module")
async def open_to_two(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS=", ".join(LISTED)) as started:
        yield started


def preflight(origin: str, method: str, names: str = SENT) -> dict[str, str]:
    asked = {"access-control-request-method": method, "access-control-request-headers": names}
    return {"origin": origin, **asked}


@pytest.mark.parametrize("origin", LISTED)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_listed_origin_is_let_in(open_to_two: Gateway, origin: str, method: str) -> None:
    answer = await open_to_two.http.options("/v1/generations", headers=preflight(origin, method))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert method in answer.headers["access-control-allow-methods"]
    assert set(SENT.split(", ")) <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
    assert int(answer.headers["access-control-max-age"]) >= 60
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_origin_is_not(open_to_two: Gateway, origin: str) -> None:
    answer = await open_to_two.http.options("/v1/generations", headers=preflight(origin, "POST"))
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    read = await open_to_two.http.get("/v1/generations", headers={"origin": origin})
    assert "access-control-allow-origin" not in read.headers


async def test_a_page_can_read_streams_and_refusals(open_to_two: Gateway) -> None:
    """An error without these headers is no error to a page, only a failure of the network."""
    gid = (await open_to_two.create())["id"]
    await open_to_two.http.post(f"/v1/generations/{gid}/cancel")
    for path, status in ((f"/v1/generations/{gid}/events", 200), ("/v1/generations/gen_x", 404), ("/nowhere", 404)):
        answer = await open_to_two.http.get(path, headers={"origin": LISTED[0]})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == LISTED[0]
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed >= READ


async def test_nobody_is_let_in_by_default(api: Gateway) -> None:
    for answer in (
        await api.http.options("/v1/generations", headers=preflight(LISTED[0], "POST")),
        await api.http.get("/v1/generations", headers={"origin": LISTED[0]}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("names", [BY_SDKS, BY_TRACING, "X-Stainless-Lang", ""])
async def test_a_page_may_send_what_its_libraries_add(open_to_two: Gateway, names: str) -> None:
    answer = await open_to_two.http.options("/v1/chat/completions", headers=preflight(LISTED[0], "POST", names))
    assert answer.status_code == 200
    assert answer.headers.get("access-control-allow-headers", "") == names
    local = {**preflight(LISTED[0], "POST", names), "access-control-request-private-network": "true"}
    answer = await open_to_two.http.options("/v1/chat/completions", headers=local)
    assert (answer.status_code, answer.headers["access-control-allow-private-network"]) == (200, "true")


@pytest.mark.parametrize("names", ["a b", "a;b", "a: b", "a,b c", "a\u00e9"])
async def test_what_is_no_name_of_a_header_is_not_echoed(open_to_two: Gateway, names: str) -> None:
    headers = {name: value.encode("latin-1") for name, value in preflight(LISTED[0], "POST", names).items()}
    answer = await open_to_two.http.options("/v1/chat/completions", headers=headers)
    assert answer.status_code == 400
    assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize("written", ["HTTPS://App.Example:443/", "https://app.example/", "*", "*,https://app.example"])
async def test_an_origin_is_meant_however_it_is_written(redis: EmbeddedRedis, written: str) -> None:
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS=written) as api:
        answer = await api.http.options("/v1/generations", headers=preflight("https://app.example", "POST"))
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")
        read = await api.http.get("/v1/generations", headers={"origin": "https://app.example"})
        assert (read.status_code, read.headers["access-control-allow-origin"] in ("*", LISTED[0])) == (200, True)


# --- an error of ours ------------------------------------------------------------------------------------------


@asynccontextmanager
async def spoiled(broker: Broker, gid: str) -> AsyncGenerator[None, None]:
    """A generation that cannot be read, for the length of a block: its metadata are no JSON."""
    await broker.store.redis.execute("HSET", keys.meta(gid), "mt", "{")
    yield
    await broker.store.redis.execute("HSET", keys.meta(gid), "mt", "{}")


async def test_an_error_of_ours_has_an_id_and_can_be_read_by_a_page(open_to_two: Gateway, broker: Broker) -> None:
    gid = (await open_to_two.create())["id"]
    async with spoiled(broker, gid):
        crashed = await open_to_two.http.get(f"/v1/generations/{gid}", headers={"origin": LISTED[0]})
    assert (crashed.status_code, crashed.json()["error"]["code"]) == (500, "internal_error")
    assert crashed.headers["access-control-allow-origin"] == LISTED[0]
    assert "x-should-retry" not in crashed.headers
    await open_to_two.process.says(rf"unhandled \w+ \({crashed.headers['x-request-id']}\)")
    await open_to_two.process.says(rf"GET /v1/generations/{gid} → 500 .*\({crashed.headers['x-request-id']}\)")
    assert (await open_to_two.http.get("/healthz")).status_code == 200
    assert open_to_two.process.output.count("Traceback") == 1


async def test_after_an_error_of_ours_nothing_is_asked_for_again(open_to_two: Gateway, broker: Broker) -> None:
    """The generation was accepted: another POST would be another one, and another bill."""
    before = await listed(open_to_two)
    page = {"origin": LISTED[0]}
    posting = asyncio.create_task(open_to_two.http.post("/v1/chat/completions", json=request_body(), headers=page))
    writer = await Writer(broker.store.redis, await new_one(open_to_two, before)).claim()
    await writer.append("Good morning")
    async with spoiled(broker, writer.gid):
        await writer.finish()
        crashed = await posting
    assert crashed.status_code == 500
    assert crashed.headers["x-should-retry"] == "false"
    assert crashed.headers["x-generation-id"] == writer.gid
    assert crashed.headers["access-control-allow-origin"] == LISTED[0]
    assert "x-should-retry" in crashed.headers["access-control-expose-headers"]
    assert crashed.headers["x-request-id"].startswith("req_")

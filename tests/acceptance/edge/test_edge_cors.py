"""Which pages may call the gateway from a browser: exactly the listed origins, by default none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.edge.peer import listed, new_generation
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
async def two_origins(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS=", ".join(LISTED)) as started:
        yield started


def preflight(origin: str, method: str, names: str = SENT) -> dict[str, str]:
    request = {"access-control-request-method": method, "access-control-request-headers": names}
    return {"origin": origin, **request}


@pytest.mark.parametrize("origin", LISTED)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_a_listed_origin_is_allowed(two_origins: Gateway, origin: str, method: str) -> None:
    answer = await two_origins.http.options("/v1/generations", headers=preflight(origin, method))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert method in answer.headers["access-control-allow-methods"]
    assert set(SENT.split(", ")) <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
    assert int(answer.headers["access-control-max-age"]) >= 60
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("origin", FOREIGN)
async def test_an_unlisted_origin_is_not_allowed(two_origins: Gateway, origin: str) -> None:
    answer = await two_origins.http.options("/v1/generations", headers=preflight(origin, "POST"))
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    read = await two_origins.http.get("/v1/generations", headers={"origin": origin})
    assert "access-control-allow-origin" not in read.headers


async def test_a_listed_page_can_read_streams_and_errors(two_origins: Gateway) -> None:
    """For a page, an error without these headers is only a network failure."""
    gid = (await two_origins.create())["id"]
    await two_origins.http.post(f"/v1/generations/{gid}/cancel")
    for path, status in ((f"/v1/generations/{gid}/events", 200), ("/v1/generations/gen_x", 404), ("/nowhere", 404)):
        answer = await two_origins.http.get(path, headers={"origin": LISTED[0]})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == LISTED[0]
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed >= READ


async def test_no_origin_is_allowed_by_default(api: Gateway) -> None:
    for answer in (
        await api.http.options("/v1/generations", headers=preflight(LISTED[0], "POST")),
        await api.http.get("/v1/generations", headers={"origin": LISTED[0]}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("names", [BY_SDKS, BY_TRACING, "X-Stainless-Lang", ""])
async def test_a_page_may_send_the_headers_of_its_libraries(two_origins: Gateway, names: str) -> None:
    answer = await two_origins.http.options("/v1/chat/completions", headers=preflight(LISTED[0], "POST", names))
    assert answer.status_code == 200
    assert answer.headers.get("access-control-allow-headers", "") == names
    local = {**preflight(LISTED[0], "POST", names), "access-control-request-private-network": "true"}
    answer = await two_origins.http.options("/v1/chat/completions", headers=local)
    assert (answer.status_code, answer.headers["access-control-allow-private-network"]) == (200, "true")


@pytest.mark.parametrize("names", ["a b", "a;b", "a: b", "a,b c", "a\u00e9"])
async def test_invalid_header_names_are_not_echoed(two_origins: Gateway, names: str) -> None:
    headers = {name: value.encode("latin-1") for name, value in preflight(LISTED[0], "POST", names).items()}
    answer = await two_origins.http.options("/v1/chat/completions", headers=headers)
    assert answer.status_code == 400
    assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize("written", ["HTTPS://App.Example:443/", "https://app.example/", "*", "*,https://app.example"])
async def test_all_spellings_of_an_origin_are_equal(redis: EmbeddedRedis, written: str) -> None:
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS=written) as api:
        answer = await api.http.options("/v1/generations", headers=preflight("https://app.example", "POST"))
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")
        read = await api.http.get("/v1/generations", headers={"origin": "https://app.example"})
        assert (read.status_code, read.headers["access-control-allow-origin"] in ("*", LISTED[0])) == (200, True)


# --- internal errors -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def unreadable(broker: Broker, gid: str) -> AsyncGenerator[None, None]:
    """Make a generation unreadable within the context: its metadata are not valid JSON."""
    await broker.store.redis.execute("HSET", keys.meta(gid), "mt", "{")
    yield
    await broker.store.redis.execute("HSET", keys.meta(gid), "mt", "{}")


async def test_an_internal_error_has_an_id_and_is_readable_by_a_page(two_origins: Gateway, broker: Broker) -> None:
    gid = (await two_origins.create())["id"]
    async with unreadable(broker, gid):
        crashed = await two_origins.http.get(f"/v1/generations/{gid}", headers={"origin": LISTED[0]})
    assert (crashed.status_code, crashed.json()["error"]["code"]) == (500, "internal_error")
    assert crashed.headers["access-control-allow-origin"] == LISTED[0]
    assert "x-should-retry" not in crashed.headers
    await two_origins.process.says(rf"unhandled \w+ \({crashed.headers['x-request-id']}\)")
    await two_origins.process.says(rf"GET /v1/generations/{gid} → 500 .*\({crashed.headers['x-request-id']}\)")
    assert (await two_origins.http.get("/healthz")).status_code == 200
    assert two_origins.process.output.count("Traceback") == 1


async def test_an_internal_error_after_acceptance_forbids_a_retry(two_origins: Gateway, broker: Broker) -> None:
    """The generation was accepted: another POST would create and bill a second one."""
    before = await listed(two_origins)
    page = {"origin": LISTED[0]}
    posting = asyncio.create_task(two_origins.http.post("/v1/chat/completions", json=request_body(), headers=page))
    writer = await Writer(broker.store.redis, await new_generation(two_origins, before)).claim()
    await writer.append("Good morning")
    async with unreadable(broker, writer.gid):
        await writer.finish()
        crashed = await posting
    assert crashed.status_code == 500
    assert crashed.headers["x-should-retry"] == "false"
    assert crashed.headers["x-generation-id"] == writer.gid
    assert crashed.headers["access-control-allow-origin"] == LISTED[0]
    assert "x-should-retry" in crashed.headers["access-control-expose-headers"]
    assert crashed.headers["x-request-id"].startswith("req_")

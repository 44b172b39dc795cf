"""A gateway without keys serves programs on this machine and its own pages. Requests from pages of other sites are
refused before they have an effect: nothing is read, created or deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.edge.peer import peer
from tests.support import Gateway, gateway, request_body

EVIL = "https://evil.example"
TEXT, JSON = {"content-type": "text/plain"}, {"content-type": "application/json"}
REBOUND = {"host": "evil.example:8000"}


@pytest.fixture(scope="module")
async def open_gateway(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway without keys on all addresses, as between containers."""
    settings = {"HOST": "0.0.0.0", "TOKENCAST_ALLOW_OPEN": "1", "TOKENCAST_ALLOWED_HOSTS": "tokencast.example"}
    async with gateway(redis.url, **settings) as started:
        yield started


async def count(api: Gateway) -> int:
    return len((await api.http.get("/v1/generations?limit=100")).json()["data"])


@pytest.mark.parametrize("route", ["/v1/generations", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "page",
    [
        {"origin": EVIL, **TEXT},
        {"origin": EVIL, **JSON},
        {"origin": EVIL, "sec-fetch-site": "cross-site", **TEXT},
        {"sec-fetch-site": "cross-site", **JSON},
        {"origin": "null", **JSON},
        {"origin": "http://localhost:3000", "sec-fetch-site": "same-site", **JSON},
        {**REBOUND, "origin": "http://evil.example:8000", "sec-fetch-site": "same-origin", **JSON},
        {**REBOUND, **JSON},
    ],
)
async def test_a_page_of_another_site_cannot_create_generations(api: Gateway, route: str, page: dict[str, str]) -> None:
    before = await count(api)
    refused = await api.http.post(route, json=request_body(), headers=page)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (403, "invalid_request_error")
    assert error["code"] in ("host_not_allowed", "origin_not_allowed")
    assert "TOKENCAST_" in error["message"]
    assert refused.headers["x-request-id"].startswith("req_")
    assert await count(api) == before


async def test_another_host_name_can_neither_read_nor_delete(api: Gateway) -> None:
    """DNS rebinding: the attacker's host name resolves to the gateway, and for the browser the page has the same
    origin."""
    gid = (await api.create())["id"]
    for method, path in (
        ("GET", "/v1/generations?limit=5"),
        ("GET", f"/v1/generations/{gid}?include=request"),
        ("GET", f"/v1/generations/{gid}/events"),
        ("GET", "/v1/activity"),
        ("GET", f"/v1/events?generation={gid}"),
        ("GET", "/v1/overview"),
        ("GET", "/v1/models"),
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("HEAD", "/v1/generations"),
        ("OPTIONS", "/v1/generations"),
        ("POST", f"/v1/generations/{gid}/cancel"),
        ("POST", f"/v1/generations/{gid}/token"),
        ("DELETE", f"/v1/generations/{gid}"),
    ):
        for headers in (REBOUND, {"origin": EVIL}, {"sec-fetch-site": "cross-site"}):
            refused = await api.http.request(method, path, headers=headers)
            assert refused.status_code == 403, (method, path, headers)
    assert (await api.get(gid))["status"] == "queued"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml"])
async def test_a_body_of_another_content_type_is_refused(api: Gateway, kind: str) -> None:
    before = await count(api)
    for page in ({}, {"origin": api.url}):
        refused = await api.http.post("/v1/generations", json=request_body(), headers={"content-type": kind, **page})
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert "application/json" in refused.json()["error"]["message"]
    assert await count(api) == before


@pytest.mark.parametrize(
    ("twice", "status"),
    [
        ((("content-type", "application/json"), ("content-type", "text/plain")), 415),
        ((("content-type", "text/plain"), ("content-type", "application/json")), 415),
        ((("content-encoding", "identity"), ("content-encoding", "gzip")), 415),
        ((("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")), 403),
        ((("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-origin")), 403),
        ((("idempotency-key", "a"), ("idempotency-key", "b")), 400),
        ((("transfer-encoding", "gzip, chunked"),), 501),
        ((("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")), 501),
        ((("content-encoding", "identity"), ("content-encoding", "identity")), 202),
    ],
)
async def test_repeated_headers_are_all_checked(api: Gateway, twice: tuple[tuple[str, str], ...], status: int) -> None:
    before = await count(api)
    headers = [("host", "localhost"), *twice]
    if "content-type" not in dict(twice):
        headers.append(("content-type", "application/json"))
    content = json.dumps(request_body()).encode()
    if "transfer-encoding" in dict(twice):
        content = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    else:
        headers.append(("content-length", str(len(content))))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    async with peer(api) as client:
        client.send(f"POST /v1/generations HTTP/1.1\r\nConnection: close\r\n{head}\r\n".encode() + content)
        answer = await client.answer()
    assert answer.status == status
    assert await count(api) == before + (status == 202)


async def test_the_default_headers_of_curl_are_accepted(api: Gateway) -> None:
    content = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        assert (await api.http.post("/v1/generations", content=content, headers=headers)).status_code == 202
        bad = await api.http.post("/v1/generations", content=b'{"x":' + b"[" * 975, headers=headers)
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_json")
    beacon = await api.http.post("/v1/generations", content=content, headers={"origin": api.url})
    assert beacon.status_code == 415


async def test_the_gateway_serves_its_own_pages(api: Gateway) -> None:
    own = {"origin": api.url, "sec-fetch-site": "same-origin"}
    created = await api.http.post("/v1/generations", json=request_body(), headers=own)
    assert created.status_code == 202
    gid = created.json()["id"]
    assert (await api.http.get(f"/v1/generations/{gid}", headers={"sec-fetch-site": "same-origin"})).status_code == 200
    assert (await api.http.post(f"/v1/generations/{gid}/cancel", headers=own)).json()["status"] == "cancelled"
    assert (await api.http.delete(f"/v1/generations/{gid}", headers=own)).status_code == 204
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    for path, status in (("/", 200), ("/docs", 200), ("/static/app.js", 200), ("/v1/generations", 403)):
        assert (await api.http.get(path, headers=link)).status_code == status


async def test_a_request_without_a_host_is_accepted(api: Gateway) -> None:
    async with peer(api) as client:
        client.send("GET /healthz HTTP/1.0\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_an_open_gateway_accepts_programs_under_any_host_name(open_gateway: Gateway) -> None:
    """By a container's name, through a load balancer, as a probe."""
    for name in ("api:8000", "tokencast.svc.cluster.local", "10.20.30.40:8000"):
        for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/generations"):
            assert (await open_gateway.http.get(path, headers={"host": name})).status_code == 200
        created = await open_gateway.http.post("/v1/generations", json=request_body(), headers={"host": name})
        assert created.status_code == 202


@pytest.mark.parametrize("name", ["10.20.30.40:8000", "tokencast.example", "tokencast.example:8443", "localhost:8000"])
async def test_an_open_gateway_serves_pages_under_known_host_names(open_gateway: Gateway, name: str) -> None:
    browser = {"host": name, "user-agent": "Mozilla/5.0"}
    assert (await open_gateway.http.get("/", headers=browser)).status_code == 200
    own = {**browser, "origin": f"http://{name}"}
    assert (await open_gateway.http.post("/v1/generations", json=request_body(), headers=own)).status_code == 202
    evil = await open_gateway.http.post("/v1/generations", json=request_body(), headers={**browser, "origin": EVIL})
    assert (evil.status_code, evil.json()["error"]["code"]) == (403, "origin_not_allowed")


async def test_an_open_gateway_names_the_setting_for_unknown_host_names(open_gateway: Gateway) -> None:
    for browser in ({"user-agent": "Mozilla/5.0"}, {"origin": "http://evil.example:8000"}):
        refused = await open_gateway.http.get("/", headers={**REBOUND, **browser})
        assert refused.status_code == 403
        assert "TOKENCAST_ALLOWED_HOSTS" in refused.json()["error"]["message"]
        assert "`evil.example:8000`" in refused.json()["error"]["message"]


async def test_an_unlisted_origin_is_refused_before_it_has_an_effect(redis: EmbeddedRedis) -> None:
    """A listed page can also read error responses."""
    listed = {"origin": "https://app.example"}
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS="https://app.example") as api:
        assert (await api.http.post("/v1/generations", json=request_body(), headers=listed)).status_code == 202
        before = await count(api)
        foreign = await api.http.post("/v1/generations", json=request_body(), headers={"origin": EVIL})
        assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (403, False)
        for headers, status in ((TEXT, 415), (REBOUND, 403)):
            refused = await api.http.post("/v1/generations", json=request_body(), headers={**listed, **headers})
            assert refused.status_code == status
            assert refused.headers["access-control-allow-origin"] == listed["origin"]
        assert await count(api) == before


async def test_a_gateway_with_keys_does_not_check_origins(redis: EmbeddedRedis) -> None:
    """A client with a key is allowed; a page of another site has no key."""
    digest = hashlib.sha256(b"key").hexdigest()
    async with gateway(redis.url, TOKENCAST_API_KEYS=f"anna:{digest}") as api:
        key: dict[str, Any] = {"authorization": "Bearer key"}
        for headers in ({}, REBOUND, {"origin": EVIL}, {"sec-fetch-site": "cross-site"}, TEXT):
            sent = {**key, **headers}
            created = await api.http.post("/v1/generations", json=request_body(), headers=sent)
            assert created.status_code == 202, headers
            gid = created.json()["id"]
            assert (await api.http.get(f"/v1/generations/{gid}", headers=sent)).status_code == 200
            token = (await api.http.post(f"/v1/generations/{gid}/token", headers=sent)).json()["token"]
            read = await api.http.get(f"/v1/generations/{gid}?token={token}", headers=headers)
            assert read.status_code == 200
            assert (await api.http.get("/v1/generations", headers=headers)).status_code == 401

"""Bad input gets a clear response in OpenAI's form and a log line without the prompt, and changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.support import Gateway, gateway, request_body, service, wait_until

CANARY = "the canary sings"
BODY = request_body(CANARY)
ROUTES = ("/v1/generations", "/v1/chat/completions")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("content", "status", "code", "param"),
    [
        (b'{"model": ' + CANARY.encode(), 400, "invalid_json", None),
        (b'["' + CANARY.encode() + b'"]', 400, "invalid_type", None),
        (b"", 400, "invalid_json", None),
        (b'{"model":"m","messages":[]}', 400, "empty_array", "messages"),
        (b'{"model":"m","messages":"' + CANARY.encode() + b'"}', 400, "invalid_type", "messages"),
        (b'{"model":"no-such-model","messages":[{"role":"user","content":"x"}]}', 404, "model_not_found", "model"),
        (b'{"messages":[{"role":"user","content":"x"}]}', 400, "missing_required_parameter", "model"),
    ],
)
async def test_a_bad_body_is_refused_with_its_parameter(
    api: Gateway, route: str, content: bytes, status: int, code: str, param: str | None
) -> None:
    before = len((await api.http.get("/v1/generations")).json()["data"])
    response = await api.http.post(route, content=content, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    request_id = response.headers["x-request-id"]
    await api.process.says(rf"POST {route} → {status} .*\({request_id}\)")
    assert CANARY not in api.process.output
    assert len((await api.http.get("/v1/generations")).json()["data"]) == before


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_two_megabytes_is_too_large(api: Gateway, route: str, chunked: bool) -> None:
    """The gateway has responded and reads no further. The body is small enough for the kernel's buffers, so that the
    client can finish writing and then reads the response."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        for _ in range(32):
            yield b"x" * 65536

    response = await api.http.post(route, content=pieces() if chunked else b"x" * 2 * 1024 * 1024)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert (await api.http.get("/healthz")).status_code == 200


async def test_an_unknown_route_is_404_and_a_wrong_method_405(api: Gateway) -> None:
    unknown = await api.http.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    wrong = await api.http.put("/v1/generations", json={})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(wrong.headers["allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/chat/completion",
        "/v1/v1/chat/completions",
        "/chat/completions",
        "/completions",
        "/api/chat",
        "/api/generate",
        "/v1beta/models/m:generateContent",
    ],
)
async def test_routes_of_other_apis_name_the_supported_one(api: Gateway, path: str) -> None:
    refused = await api.http.post(path, json={"model": "m", "input": "hi"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_url")
    assert path in refused.json()["error"]["message"]
    assert "POST /v1/chat/completions" in refused.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/v1/generations/",
        "/v1/events/",
        "/v1/activity/",
        "/v1/overview/",
        "/docs/",
        "/metrics/",
    ],
)
async def test_a_trailing_slash_is_not_redirected(api: Gateway, method: str, path: str, host: str) -> None:
    """A redirect would repeat the token, to a scheme and a host that the gateway does not know."""
    answer = await api.http.request(method, f"{path}?token=SECRET", headers={"host": host}, follow_redirects=False)
    assert answer.status_code == 404
    assert "location" not in answer.headers
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "unknown_url"
        assert "SECRET" not in answer.text
    for model in ("/v1/models/", "/v1/models/m/"):
        assert (await api.http.get(model)).status_code == 404


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate, gzip"])
async def test_a_compressed_body_is_refused_with_its_coding(api: Gateway, route: str, coding: str) -> None:
    content = gzip.compress(json.dumps(BODY).encode())
    headers = {"content-encoding": coding, "content-type": "application/json"}
    refused = await api.http.post(route, content=content, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert f"Content-Encoding: {coding}" in refused.json()["error"]["message"]
    assert refused.headers["accept-encoding"] == "identity"
    plain = {**headers, "content-encoding": "identity"}
    assert (await api.http.post("/v1/generations", content=json.dumps(BODY), headers=plain)).status_code == 202


async def test_unusual_but_valid_bodies_are_accepted(api: Gateway) -> None:
    """With a byte order mark, with half of a surrogate pair, with roles and contents of a single upstream."""
    texts = {
        b'\xef\xbb\xbf{"model":"m","messages":[{"role":"user","content":"x"}]}': {"role": "user", "content": "x"},
        rb'{"model":"m","messages":[{"role":"user","content":"\ud83d"}]}': {"role": "user", "content": "\ufffd"},
        b'{"model":"m","messages":[{"role":"ipython","content":{"a":1}}]}': {"role": "ipython", "content": {"a": 1}},
    }
    for content, message in texts.items():
        created = await api.http.post("/v1/generations", content=content, headers={"content-type": "application/json"})
        assert created.status_code == 202, created.text
        kept = await api.http.get(f"/v1/generations/{created.json()['id']}?include=request")
        assert kept.json()["request"]["messages"] == [message]


@pytest.mark.parametrize("depth", [98, 99, 100, 975, 5000])
async def test_a_body_that_is_too_deep_is_refused(api: Gateway, depth: int) -> None:
    content = json.dumps(BODY)[:-1] + ',"x":' + "[" * depth + "]" * depth + "}"
    answer = await api.http.post("/v1/generations", content=content)
    if depth < 100:
        kept = await api.http.get(f"/v1/generations/{answer.json()['id']}?include=request")
        assert kept.json()["request"]["x"] == json.loads("[" * depth + "]" * depth)
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("gid", ["gen_x", "gen_" + "0" * 34, "%2e%2e%2fetc", "gen_" + "1" * 10 + "10" + "z" * 22])
async def test_an_invalid_id_is_not_found(api: Gateway, gid: str) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
        response = await api.http.request(method, f"/v1/generations/{gid}{path}")
        assert response.status_code == 404, (method, path)
        assert response.json()["error"]["code"] in ("generation_not_found", "unknown_url")


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("limit=101", "limit"), ("status=done", "status"), ("after=x", "id")],
)
async def test_a_bad_query_is_refused_with_its_parameter(api: Gateway, query: str, param: str) -> None:
    response = await api.http.get(f"/v1/generations?{query}")
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


async def test_an_idempotency_key_belongs_to_one_body(api: Gateway) -> None:
    first = await api.http.post("/v1/generations", json=BODY, headers={"idempotency-key": "order-17"})
    again = await api.http.post("/v1/generations", json=BODY, headers={"idempotency-key": "order-17"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    other = await api.http.post("/v1/generations", json=request_body("else"), headers={"idempotency-key": "order-17"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"


async def test_tenants_do_not_see_each_other(redis: EmbeddedRedis) -> None:
    """Another tenant's generation is as unknown as one that never existed, and a request without a key is refused."""
    keys = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "ben"))
    async with gateway(redis.url, TOKENCAST_API_KEYS=keys) as api:
        anna, ben = {"authorization": "Bearer key-anna"}, {"authorization": "bearer key-ben"}
        gid = (await api.create(**anna))["id"]
        assert (await api.http.get(f"/v1/generations/{gid}", headers=anna)).status_code == 200
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
            assert (await api.http.request(method, f"/v1/generations/{gid}{path}", headers=ben)).status_code == 404
        assert (await api.http.get(f"/v1/chat/completions/{gid}", headers=ben)).status_code == 404
        assert (await api.http.get("/v1/generations", headers=ben)).json()["data"] == []
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic key-anna"}):
            refused = await api.http.get("/v1/generations", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "key-anna" not in api.process.output


async def test_a_gateway_waits_for_redis_at_the_start() -> None:
    """The log names the URL without its password, `/readyz` answers 503, and the gateway becomes ready once Redis
    runs."""
    async with EmbeddedRedis() as redis:
        redis.kill()
        url = redis.url.replace("redis://", "redis://:hunter2@")
        async with gateway(redis.url, TOKENCAST_STREAMS_URL=url) as api:
            await api.process.says(r"Redis does not answer\. Trying redis://\*\*\*@127.0.0.1:\d+/0 again")
            assert (await api.http.get("/readyz")).status_code == 503
            assert (await api.http.get("/healthz")).status_code == 200
            refused = await api.http.post("/v1/generations", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
            assert "retry-after" in refused.headers
            stream = await api.http.get("/v1/generations/gen_" + "0" * 10 + "10" + "0" * 22 + "/events")
            assert (stream.status_code, stream.content[:7]) == (200, b"retry: ")
            assert "hunter2" not in api.process.output
    async with EmbeddedRedis() as redis:
        redis.kill()
        async with gateway(redis.url) as api:
            await api.process.says("Redis does not answer")
            await redis.restart()

            async def ready() -> bool:
                return (await api.http.get("/readyz")).status_code == 200

            await wait_until(ready)
            assert (await api.create())["status"] == "queued"


async def test_a_refused_password_for_redis_is_reported(own_redis: EmbeddedRedis) -> None:
    """A wrong password is reported to the operator like a server that does not answer."""
    message = "rejects the user name or password"
    async with gateway(own_redis.url.replace("redis://", "redis://somebody:hunter3@")) as api:
        await api.process.says(message)
        ready = await api.http.get("/readyz")
        assert (ready.status_code, message in ready.text) == (503, True)
        assert (await api.http.post("/v1/generations", json=BODY)).status_code == 503
        assert "hunter" not in api.process.output
        assert "Traceback" not in api.process.output


async def test_a_full_redis_refuses_new_generations_and_can_still_end_old_ones(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        old = await api.create()
        await broker.store.redis.execute("CONFIG", "SET", "maxmemory", "1mb")
        refused = await api.http.post("/v1/generations", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        cancelled = await api.http.post(f"/v1/generations/{old['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert (await api.events(old["id"]))[-1].event == "cancelled"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HOST": "0.0.0.0"}, "TOKENCAST_ALLOW_OPEN=1"),
        ({"PORT": "http"}, "PORT: "),
        ({"TOKENCAST_API_KEYS": "anna"}, "TOKENCAST_API_KEYS"),
        ({"TOKENCAST_LEASE": "-1"}, "TOKENCAST_LEASE: "),
    ],
)
async def test_a_gateway_that_cannot_start_names_the_variable(variables: dict[str, Any], message: str) -> None:
    async with service("api", **{"PORT": "0", **variables}) as process:
        assert await process.wait() == 2
    assert len(process.lines) == 1
    assert message in process.output


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        async with service("api", PORT=str(port)) as process:
            assert await process.wait() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in process.output
    assert "Address already in use" in process.output
    assert "PORT" in process.output


async def test_the_list_has_pages_newest_first(redis: EmbeddedRedis, broker: Broker) -> None:
    """The last id of a page leads to the next one. Each generation is listed exactly once, without its text."""
    async with gateway(redis.url, TOKENCAST_API_KEYS=f"paul:{hashlib.sha256(b'p').hexdigest()}") as api:
        paul = {"authorization": "Bearer p"}
        made = [(await api.create(request_body(metadata={"n": str(n)}), **paul))["id"] for n in range(25)]
        await api.http.post(f"/v1/generations/{made[3]}/cancel", headers=paul)
        seen: list[dict[str, Any]] = []
        after = ""
        while True:
            page = (await api.http.get(f"/v1/generations?limit=10{after}", headers=paul)).json()
            seen += page["data"]
            if not page["has_more"]:
                break
            after = f"&after={seen[-1]['id']}"
        assert [generation["id"] for generation in seen] == sorted(made, reverse=True)
        assert not any("text" in generation or "choices" in generation for generation in seen)
        cancelled = (await api.http.get("/v1/generations?status=cancelled", headers=paul)).json()["data"]
        assert [(g["id"], g["metadata"]) for g in cancelled] == [(made[3], {"n": "3"})]

"""Batches, retries and groups over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, Writer, gateway, request_body

BATCH, RETRY = "/v1/generations/batch", "/v1/generations/retry"
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture(scope="module")
async def small(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway with small limits on bodies."""
    async with gateway(redis.url, TOKENCAST_MAX_BODY="1000", TOKENCAST_MAX_BATCH="5000") as started:
        yield started


def lines(*bodies: dict[str, Any] | str) -> bytes:
    return "\n".join(body if isinstance(body, str) else json.dumps(body) for body in bodies).encode()


def kinds(data: list[dict[str, Any]]) -> list[str | int]:
    """Of each item its object, or the status of its error."""
    return [item["object"] if "object" in item else item["error"]["status"] for item in data]


async def test_a_batch_of_json_or_of_lines(small: Gateway) -> None:
    bodies = [request_body("one"), {"model": "m"}, request_body("x" * 2000), request_body("four")]
    as_json = await small.http.post(BATCH, json={"generations": bodies}, headers={"idempotency-key": "both"})
    assert (as_json.status_code, as_json.json()["object"]) == (200, "list")
    data = as_json.json()["data"]
    assert kinds(data) == ["generation", 400, 413, "generation"]
    error = data[1]["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
    assert "text" not in data[0]
    headers = {**NDJSON, "idempotency-key": "both"}
    as_lines = await small.http.post(BATCH, content=lines(*bodies) + b"\n\n", headers=headers)
    assert as_lines.json() == as_json.json()
    listed = await small.http.get(f"/v1/generations/{data[0]['id']}")
    assert listed.json()["status"] == "queued"


async def test_lines_are_read_as_they_arrive(small: Gateway) -> None:
    """Whichever pieces of the body the network makes of them."""
    body = lines(request_body("one"), "{", request_body("x" * 1500), request_body("é" * 20))

    async def pieces(size: int) -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    for size in (1, 7, 999, 5000):
        answer = await small.http.post(BATCH, content=pieces(size), headers=NDJSON)
        assert kinds(answer.json()["data"]) == ["generation", 400, 413, "generation"]
        assert answer.json()["data"][1]["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("headers", [{}, NDJSON], ids=["json", "lines"])
async def test_a_batch_has_a_size_of_its_own(small: Gateway, headers: dict[str, str]) -> None:
    bodies = [request_body("x" * 900) for _ in range(6)]
    content = lines(*bodies) if headers else json.dumps({"generations": bodies})
    answer = await small.http.post(BATCH, content=content, headers={"content-type": "application/json", **headers})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert "TOKENCAST_MAX_BATCH" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"[]", "generations", "invalid_type"),
        (b"{}", "generations", "invalid_type"),
        (b'{"generations":{}}', "generations", "invalid_type"),
        (b'{"generations":[],"group":"g"}', "generations", "invalid_type"),
        (b'{"generations":[]}', "generations", "invalid_value"),
        (b'{"generations":[', None, "invalid_json"),
        (b'{"generations":' + b"[" * 100_000, None, "invalid_json"),
        (b'{"generations":[' + b"1," * 1000 + b"1]}", "generations", "invalid_value"),
    ],
)
async def test_what_is_no_batch_is_refused(api: Gateway, body: bytes, param: str | None, code: str) -> None:
    answer = await api.http.post(BATCH, content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


async def test_more_lines_than_a_batch_has_are_refused_when_all_are_there(api: Gateway) -> None:
    before = (await api.http.get("/v1/overview")).json()
    answer = await api.http.post(BATCH, content=lines(*[request_body()] * 1001), headers=NDJSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "generations")
    assert (await api.http.get("/v1/overview")).json()["generations"] == before["generations"]


async def test_a_thousand_at_once(api: Gateway) -> None:
    bodies = [request_body(str(n), metadata={"n": str(n)}) for n in range(1000)]
    data = (await api.http.post(BATCH, json={"generations": bodies})).json()["data"]
    assert [item["metadata"]["n"] for item in data] == [str(n) for n in range(1000)]
    assert len({item["id"] for item in data}) == 1000


async def test_fixed_paths_are_no_ids(api: Gateway) -> None:
    for path in (BATCH, RETRY):
        answer = await api.http.get(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


# --- retries -------------------------------------------------------------------------------------------------


async def ended(api: Gateway, broker: Broker, **more: Any) -> str:
    writer = await Writer(broker.store.redis, (await api.create(request_body(**more)))["id"]).claim()
    await writer.finish("failed", b'{"error":{"message":"m","type":"server_error","code":"timeout"}}')
    return writer.gid


async def test_a_generation_is_retried(api: Gateway, broker: Broker) -> None:
    old = await ended(api, broker, metadata={"a": "b"})
    path, key = f"/v1/generations/{old}/retry", {"idempotency-key": "retry once"}
    answer = await api.http.post(path, headers=key)
    new = answer.json()
    assert (answer.status_code, new["retry_of"], new["metadata"]) == (202, old, {"a": "b"})
    assert answer.headers["location"] == f"/v1/generations/{new['id']}"
    again = await api.http.post(path, headers=key)
    assert (again.status_code, again.json()["id"], again.headers["idempotent-replayed"]) == (200, new["id"], "true")
    early = await api.http.post(f"/v1/generations/{new['id']}/retry")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "not_ended")
    assert early.headers["x-should-retry"] == "false"
    unknown = await api.http.post("/v1/generations/gen_0/retry")
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"model": "other"}', "model", "invalid_value"),
        (b"[]", None, "invalid_type"),
        (b"null", None, "invalid_type"),
        (b"{", None, "invalid_json"),
    ],
)
async def test_a_retry_takes_no_fields(api: Gateway, broker: Broker, body: bytes, param: str | None, code: str) -> None:
    path = f"/v1/generations/{await ended(api, broker)}/retry"
    answer = await api.http.post(path, content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert (await api.http.post(path, json={})).status_code == 202


async def test_all_that_match_are_retried(api: Gateway, broker: Broker) -> None:
    made = [await ended(api, broker, tokencast={"group": "again"}) for _ in range(3)]
    conditions = {"code": "timeout", "group": "again", "since": "2020-01-01T00:00:00Z", "limit": 2}
    found = (await api.http.post(RETRY, json={**conditions, "dry_run": True})).json()
    assert (found["matched"], found["retried"], found["has_more"]) == (2, 0, True)
    assert {one["id"] for one in found["data"]} < set(made)
    done = (await api.http.post(RETRY, json={**conditions, "until": None})).json()
    assert (done["matched"], done["retried"]) == (2, 2)
    assert [one["retry_of"] for one in done["data"]] == [one["id"] for one in found["data"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"status": "queued"}, "status"),
        ({"state": "failed"}, "state"),
        ({"limit": 1001}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"group": "x" * 65}, "group"),
        ({"dry_run": 1}, "dry_run"),
    ],
)
async def test_wrong_conditions_are_named(api: Gateway, body: dict[str, Any], param: str) -> None:
    answer = await api.http.post(RETRY, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", RETRY),
        ("POST", "/v1/generations/gen_0/retry"),
        ("GET", "/v1/groups/some"),
        ("POST", "/v1/groups/some/cancel"),
    ],
)
async def test_unknown_parameters_are_named(api: Gateway, method: str, path: str) -> None:
    answer = await api.http.request(method, f"{path}?code=timeout")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "code", "unknown_parameter")


# --- groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["night", "a/b", "a/cancel", "cancel", "ünï 100 %?", "x" * 64])
async def test_a_group_is_counted_listed_and_cancelled(api: Gateway, name: str) -> None:
    path = f"/v1/groups/{quote(name, safe='')}"
    assert (await api.http.get(path)).status_code == 404
    body = request_body(tokencast={"group": name})
    made = (await api.http.post(BATCH, json={"generations": [body, body]})).json()["data"]
    group = (await api.http.get(path)).json()
    assert (group["object"], group["name"], group["counts"]["queued"]) == ("group", name, 2)
    assert group["ended_at"] is None
    listed = await api.http.get("/v1/generations", params={"group": name, "status": "queued,in_progress"})
    assert {one["id"] for one in listed.json()["data"]} == {one["id"] for one in made}
    ended = (await api.http.post(f"{path}/cancel")).json()
    assert (ended["counts"]["queued"], ended["counts"]["cancelled"]) == (0, 2)
    assert ended["ended_at"] >= ended["created_at"]
    assert (await api.http.get(path)).json() == ended


async def test_a_group_s_name_is_checked(api: Gateway) -> None:
    answer = await api.http.get(f"/v1/groups/{'x' * 65}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
    unknown = await api.http.post("/v1/groups/never/cancel")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "group_not_found")


@pytest.mark.parametrize("history", [True, False])
async def test_the_activity_of_a_group(api: Gateway, history: bool) -> None:
    """Neither other generations, nor those whose metadata look like a group."""
    name = f"watched {history}"
    mine, confusing = request_body(tokencast={"group": name}), request_body(metadata={"group": name})
    query = f"?group={quote(name)}" + ("" if history else "&after=latest")
    first = await api.create(mine) if history else None
    await api.create(confusing)
    async with aclosing(api.stream("GET", f"/v1/activity{query}")) as stream:
        if first is not None:
            assert (await anext(stream)).json["id"] == first["id"]
        else:
            assert (await anext(stream)).event is None  # the bookmark: the stream has begun
        await api.create(confusing)
        second = await api.create(mine)
        frame = await anext(stream)
        assert (frame.event, frame.json["id"], frame.json["group"]) == ("created", second["id"], name)
        await api.http.delete(f"/v1/generations/{second['id']}")
        frame = await anext(stream)
        assert (frame.event, frame.json["id"]) == ("gone", second["id"])

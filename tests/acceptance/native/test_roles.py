"""Roles of API keys: what an operator sees of all tenants, and what a key that only reads is refused."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Frame, Gateway, Writer, gateway, request_body

ROLES = {"anna": "", "ben": "", "reader": ":read", "ops": ":operator"}
TENANTS = {"reader": "anna"}
KEYS = ",".join(
    f"{TENANTS.get(name, name)}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}{role}"
    for name, role in ROLES.items()
)
ANNA, BEN, READER, OPS = ({"authorization": f"Bearer key-{name}"} for name in ROLES)
OFF = {f"TOKENCAST_TENANT_{name}": "0" for name in ("QUEUED", "PER_MINUTE")}


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS, **OFF) as started:
        yield started


async def create(api: Gateway, headers: dict[str, str]) -> str:
    return (await api.create(None, **headers))["id"]


async def listed(api: Gateway, headers: dict[str, str], query: str = "") -> dict[str, Any]:
    """Generation → its tenant, if the list names it."""
    answer = await api.http.get(f"/v1/generations?limit=100{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return {one["id"]: one.get("tenant") for one in answer.json()["data"]}


def refused(answer: httpx2.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
    assert answer.json()["error"]["type"] == "invalid_request_error"


# --- operators


async def test_an_operator_lists_all_tenants_and_anybody_else_its_own(api: Gateway) -> None:
    of_anna, of_ben, of_ops = await create(api, ANNA), await create(api, BEN), await create(api, OPS)
    everything = await listed(api, OPS)
    assert {gid: everything[gid] for gid in (of_anna, of_ben, of_ops)} == {
        of_anna: "anna",
        of_ben: "ben",
        of_ops: "ops",
    }
    assert list(everything) == sorted(everything, reverse=True)
    assert of_ben in await listed(api, OPS, "&tenant=ben")
    assert set((await listed(api, OPS, "&tenant=ben")).values()) == {"ben"}
    assert await listed(api, OPS, "&tenant=nobody") == {}
    for headers, mine, others in ((ANNA, of_anna, of_ben), (READER, of_anna, of_ops), (BEN, of_ben, of_anna)):
        seen = await listed(api, headers)
        assert mine in seen
        assert others not in seen
        assert set(seen.values()) == {None}


async def test_pages_and_statuses_are_those_of_all_tenants(api: Gateway) -> None:
    gids = [await create(api, headers) for headers in (ANNA, BEN) * 3]
    for gid in gids[:3]:
        await api.http.post(f"/v1/generations/{gid}/cancel", headers=OPS)
    assert set(gids[:3]) <= set(await listed(api, OPS, "&status=cancelled"))
    assert not set(gids[:3]) & set(await listed(api, OPS, "&status=queued"))
    assert set(gids[3:]) <= set(await listed(api, OPS, "&status=queued"))
    found: list[str] = []
    while True:
        after = f"&after={found[-1]}" if found else ""
        page = (await api.http.get(f"/v1/generations?limit=2{after}", headers=OPS)).json()
        found += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
    assert set(gids) <= set(found)
    assert len(found) == len(set(found))


async def test_an_operator_uses_the_generations_of_all_tenants(api: Gateway, broker: Broker) -> None:
    gid = await create(api, ANNA)
    path = f"/v1/generations/{gid}"
    shown = (await api.http.get(path, headers=OPS)).json()
    assert shown["tenant"] == "anna"
    assert "tenant" not in (await api.http.get(path, headers=ANNA)).json()
    assert (await api.http.get(f"{path}?include=request", headers=OPS)).json()["request"]["model"] == "m"
    token = (await api.http.post(f"{path}/token", headers=OPS)).json()["token"]
    by_token = (await api.http.get(f"{path}?token={token}")).json()
    assert (by_token["id"], by_token.get("tenant")) == (gid, None)
    writer = await Writer(broker.store.redis, gid).claim()
    await writer.append("Hello")
    async with aclosing(api.stream("GET", f"{path}/events", headers=OPS)) as frames:
        assert (await anext(frames)).event == "created"
    async with aclosing(api.stream("GET", f"/v1/events?generation={gid}", headers=OPS)) as frames:
        assert (await anext(frames)).event == "created"
    assert (await api.http.get(f"/v1/chat/completions/{gid}", headers=OPS)).json()["choices"]
    cancelled = (await api.http.post(f"{path}/cancel", headers=OPS)).json()
    assert (cancelled["status"], cancelled["tenant"]) == ("cancelled", "anna")
    assert (await api.http.delete(path, headers=OPS)).status_code == 204
    assert (await api.http.get(path, headers=OPS)).status_code == 410
    assert gid not in await listed(api, OPS)
    assert (await api.http.get(path[:-1] + "~", headers=OPS)).status_code == 404


async def test_an_operator_retries_generations_of_all_tenants(api: Gateway, broker: Broker) -> None:
    """Under the quota and the Idempotency-Key of their tenant, to whom the new ones belong."""
    gid = await create(api, ANNA)
    await api.http.post(f"/v1/generations/{gid}/cancel", headers=ANNA)
    path, key = f"/v1/generations/{gid}/retry", {"idempotency-key": "again"}
    assert (await api.http.post(path, headers=BEN)).status_code == 404
    answers = [await api.http.post(path, headers={**headers, **key}) for headers in (OPS, OPS, ANNA)]
    assert [answer.status_code for answer in answers] == [202, 200, 200], answers[0].text
    first, repeated, seen = (answer.json() for answer in answers)
    assert (first["tenant"], first["retry_of"]) == ("anna", gid)
    assert (repeated["id"], repeated["tenant"]) == (first["id"], "anna")
    assert (seen["id"], seen.get("tenant")) == (first["id"], None)
    assert (await broker.get(first["id"], "anna")).tenant == "anna"
    assert (await api.http.post(f"{path.replace(gid, gid[:-1] + '~')}", headers=OPS)).status_code == 404


async def test_an_operator_retries_all_of_a_tenant(api: Gateway) -> None:
    gid = await create(api, ANNA)
    await api.http.post(f"/v1/generations/{gid}/cancel", headers=ANNA)
    await api.http.post(f"/v1/generations/{await create(api, BEN)}/cancel", headers=BEN)

    async def retried(headers: dict[str, str], **asked: Any) -> dict[str, Any]:
        body = {"status": "cancelled", "limit": 1, **asked}
        answer = await api.http.post("/v1/generations/retry", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    found = (await retried(OPS, tenant="anna", dry_run=True))["data"]
    assert [(one["id"], one["tenant"]) for one in found] == [(gid, "anna")]
    [new] = (await retried(OPS, tenant="anna"))["data"]
    assert (new["retry_of"], new["tenant"]) == (gid, "anna")
    assert (await listed(api, ANNA))[new["id"]] is None
    assert (await retried(OPS))["matched"] == (await retried(OPS, tenant="nobody"))["matched"] == 0
    assert "tenant" not in (await retried(ANNA, tenant="anna", dry_run=True))["data"][0]
    for tenant in ("*", ""):
        answer = await api.http.post("/v1/generations/retry", json={"tenant": tenant}, headers=OPS)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tenant")
    for tenant in ("anna", "*"):
        answer = await api.http.post("/v1/generations/retry", json={"tenant": tenant}, headers=BEN)
        refused(answer, "operator_required")


async def test_an_operator_names_the_tenant_of_a_group(api: Gateway) -> None:
    """A group belongs to a tenant: two tenants may use the same name."""
    body = request_body(tokencast={"group": "roles"})
    for headers in (ANNA, BEN, BEN):
        await api.create(body, **headers)
    path = "/v1/groups/roles"

    async def counts(headers: dict[str, str], query: str = "") -> Any:
        answer = await api.http.get(f"{path}{query}", headers=headers)
        return answer.json().get("counts", {}).get("queued", answer.status_code)

    assert await counts(OPS, "?tenant=anna") == await counts(ANNA) == await counts(READER, "?tenant=anna") == 1
    assert (await counts(OPS, "?tenant=ben"), await counts(OPS), await counts(OPS, "?tenant=nobody")) == (2, 404, 404)
    assert await counts(OPS, "?tenant=*") == 400
    for answer in (
        await api.http.get(f"{path}?tenant=ben", headers=ANNA),
        await api.http.post(f"{path}/cancel?tenant=ben", headers=ANNA),
    ):
        refused(answer, "operator_required")
    assert (await api.http.post(f"{path}/cancel", headers=OPS)).status_code == 404
    cancelled = (await api.http.post(f"{path}/cancel?tenant=ben", headers=OPS)).json()["counts"]
    assert (cancelled["cancelled"], cancelled["queued"]) == (2, 0)
    assert await counts(ANNA) == 1


async def test_an_operator_reads_the_deliveries_of_all_tenants(api: Gateway) -> None:
    path = f"/v1/generations/{await create(api, ANNA)}/deliveries"
    for headers in (OPS, ANNA):
        assert (await api.http.get(path, headers=headers)).json()["data"] == []
        missing = await api.http.post(f"{path}/1/redeliver", headers=headers)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "delivery_not_found")
    for answer in (await api.http.get(path, headers=BEN), await api.http.post(f"{path}/1/redeliver", headers=BEN)):
        assert answer.json()["error"]["code"] == "generation_not_found"


async def test_what_an_operator_enqueues_is_its_own_tenants(api: Gateway) -> None:
    created = await api.create(None, **OPS, **{"idempotency-key": "mine"})
    assert created["tenant"] == "ops"
    again = await api.create(None, **OPS, **{"idempotency-key": "mine"})
    assert (again["id"], again["tenant"]) == (created["id"], "ops")
    assert (await api.http.get(f"/v1/generations/{created['id']}", headers=ANNA)).status_code == 404


async def test_an_operator_s_activity_names_tenants(api: Gateway) -> None:
    async def until(gid: str, headers: dict[str, str], query: str = "") -> Frame:
        async with aclosing(api.stream("GET", f"/v1/activity{query}", headers=headers)) as frames:
            async for frame in frames:
                if frame.data and frame.json["id"] == gid:
                    return frame
        raise AssertionError("the stream ended")

    async with (
        aclosing(api.stream("GET", "/v1/activity?after=latest", headers=OPS)) as everything,
        aclosing(api.stream("GET", "/v1/activity?after=latest&tenant=ben", headers=OPS)) as of_ben,
        aclosing(api.stream("GET", "/v1/activity?after=latest", headers=ANNA)) as of_anna,
    ):
        for stream in (everything, of_ben, of_anna):
            assert (await anext(stream)).event is None  # its first id
        first, second = await create(api, ANNA), await create(api, BEN)
        live = [await anext(everything), await anext(everything)]
        assert {frame.json["id"]: frame.json["tenant"] for frame in live} == {first: "anna", second: "ben"}
        assert (await anext(of_ben)).json["id"] == second
        mine = (await anext(of_anna)).json
        assert (mine["id"], mine.get("tenant")) == (first, None)
    assert (await until(second, OPS)).json["tenant"] == "ben"
    assert (await until(second, OPS, "?tenant=ben")).json["tenant"] == "ben"
    assert "tenant" not in (await until(second, BEN)).json


async def test_an_operator_s_overview_counts_all_tenants(api: Gateway) -> None:
    async def queued(headers: dict[str, str], query: str = "") -> int:
        overview = (await api.http.get(f"/v1/overview{query}", headers=headers)).json()
        return overview["generations"]["queued"]

    before = await queued(OPS)
    await create(api, ANNA)
    await create(api, BEN)
    assert await queued(OPS) == before + 2
    assert await queued(OPS, "?tenant=anna") == await queued(ANNA) == await queued(READER)
    gid = await create(api, BEN)
    async with aclosing(api.stream("GET", f"/v1/generations/{gid}/events", headers=BEN)) as frames:
        await anext(frames)
        overview = (await api.http.get("/v1/overview", headers=OPS)).json()
        assert overview["subscribers"]["generations"][gid] == 1
        assert (await api.http.get("/v1/overview?tenant=anna", headers=OPS)).json()["subscribers"]["total"] == 0


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/overview", "/v1/activity"])
async def test_nobody_else_may_name_another_tenant(api: Gateway, path: str) -> None:
    for headers in (ANNA, READER):
        refused(await api.http.get(f"{path}?tenant=ben", headers=headers), "operator_required")
        refused(await api.http.get(f"{path}?tenant=*", headers=headers), "operator_required")
        assert (await api.http.head(f"{path}?tenant=anna", headers=headers)).status_code in (200, 405)


async def test_without_keys_there_is_one_tenant(redis: EmbeddedRedis, api: Gateway) -> None:
    of_anna = await create(api, ANNA)
    async with gateway(redis.url) as everybodys:
        created = await everybodys.create()
        assert "tenant" not in created
        seen = await listed(everybodys, {})
        assert created["id"] in seen
        assert of_anna not in seen
        assert await listed(everybodys, {}, "&tenant=default") == seen
    assert (await listed(api, OPS))[created["id"]] == "default"


async def test_a_key_says_what_it_may_do(redis: EmbeddedRedis, api: Gateway) -> None:
    async def me(api: Gateway, headers: dict[str, str]) -> Any:
        return (await api.http.get("/v1/me", headers=headers)).json()

    assert await me(api, ANNA) == {"object": "caller", "tenant": "anna", "role": "tenant", "tenants": ["anna"]}
    assert await me(api, READER) == {"object": "caller", "tenant": "anna", "role": "read", "tenants": ["anna"]}
    assert await me(api, OPS) == {
        "object": "caller",
        "tenant": "ops",
        "role": "operator",
        "tenants": ["anna", "ben", "ops"],
    }
    assert (await api.http.get("/v1/me")).status_code == 401
    assert (await api.http.get("/v1/me?tenant=ben", headers=OPS)).status_code == 400
    async with gateway(redis.url) as everybodys:
        told = {"object": "caller", "tenant": "default", "role": "operator", "tenants": ["default"]}
        assert await me(everybodys, {}) == told


async def test_all_of_a_tenant_are_cancelled_and_deleted(api: Gateway) -> None:
    """By the tenant, or by an operator that names it; a stream token does not show the prompt."""
    mine = {"metadata": {"scene": "ending"}}
    gids = [(await api.create(request_body("Who\nam I?", **mine), **ANNA))["id"] for _ in range(3)]

    async def ask(what: str, headers: dict[str, str], **body: Any) -> Any:
        answer = await api.http.post(f"/v1/generations/{what}", json={**mine, **body}, headers=headers)
        return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json()["error"]["code"])

    seen = (await api.http.get("/v1/generations?search=scene%3Dending who", headers=ANNA)).json()["data"]
    assert [(one["id"], one["prompt"]) for one in seen] == [(gid, "Who") for gid in gids[::-1]]
    path = f"/v1/generations/{gids[0]}"
    token = (await api.http.post(f"{path}/token", headers=ANNA)).json()["token"]
    assert (await api.http.get(f"{path}?token={token}")).json()["prompt"] is None
    for what in ("cancel", "delete"):
        assert await ask(what, READER, status="queued") == (403, "read_only_key")
        assert await ask(what, BEN, status="queued", tenant="anna") == (403, "operator_required")
        assert (await ask(what, OPS, status="queued"))["matched"] == 0
        assert (await ask(what, ANNA, status="queued", dry_run=True))["matched"] == 3
        for wrong in ({"status": "none"}, {"unheard-of": 1}, {"since": "soon"}, {"limit": 0}):
            assert (await ask(what, ANNA, **wrong))[0] == 400
    assert await ask("delete", ANNA) == (400, "missing_required_parameter")
    assert await ask("cancel", ANNA, status="failed") == (400, "invalid_value")
    done = await ask("cancel", OPS, tenant="anna", limit=2)
    assert (done["matched"], done["cancelled"], done["has_more"]) == (2, 2, True)
    assert [(one["id"], one["status"], one["tenant"]) for one in done["data"]] == [
        (gid, "cancelled", "anna") for gid in gids[:0:-1]
    ]
    done = await ask("delete", ANNA, status=["cancelled", "queued"])
    assert (done["matched"], done["deleted"], [one["id"] for one in done["data"]]) == (3, 3, gids[::-1])
    assert await listed(api, ANNA, "&metadata[scene]=ending") == {}


# --- keys that only read


async def test_a_key_that_only_reads_changes_nothing(api: Gateway) -> None:
    gid = await create(api, ANNA)
    path = f"/v1/generations/{gid}"
    for method, url in (
        ("POST", "/v1/generations"),
        ("POST", "/v1/chat/completions"),
        ("POST", f"{path}/cancel"),
        ("POST", f"{path}/token"),
        ("DELETE", path),
    ):
        body = request_body() if url.endswith(("generations", "completions")) else None
        refused(await api.http.request(method, url, json=body, headers=READER), "read_only_key")
    assert (await api.http.get(path, headers=READER)).json()["status"] == "queued"
    assert (await api.http.get("/v1/models", headers=READER)).status_code == 200
    async with aclosing(api.stream("GET", f"{path}/events", headers=READER)) as frames:
        assert (await anext(frames)).event == "created"
    assert (await api.http.head(f"{path}/events", headers=READER)).status_code == 200
    assert (await api.http.get(path, headers={"authorization": "Bearer key-nobody"})).status_code == 401

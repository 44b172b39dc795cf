"""Webhooks from the request to the receiver, over real processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator

import pytest
from standardwebhooks import Webhook

from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.ops.test_metrics import scrape, value
from tests.servers.webhook_receiver import ACCEPTED, SECRET, Receiver, answer, webhook_receiver
from tests.support import Gateway, gateway, request_body, wait_until, worker

ALLOWED = {"TOKENCAST_WEBHOOK_SECRET": SECRET, "TOKENCAST_WEBHOOK_ALLOW_PRIVATE": "1"}
KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ours", "theirs")}


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    async with webhook_receiver() as opened:
        yield opened


@pytest.fixture(scope="module")
async def announcing(redis: EmbeddedRedis, sim: str) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, **ALLOWED) as started, worker(redis.url, sim, **ALLOWED):
        yield started


async def announced(api: Gateway, url: str, **webhook: object) -> str:
    body = request_body(model="sim-fast", tokencast={"webhook": {"url": url, **webhook}})
    return (await api.create(body))["id"]


async def attempts(api: Gateway, gid: str, least: int) -> list[dict[str, object]]:
    async def enough() -> list[dict[str, object]]:
        response = await api.http.get(f"/v1/generations/{gid}/deliveries")
        assert response.status_code == 200
        assert response.json()["object"] == "list"
        return response.json()["data"] if len(response.json()["data"]) >= least else []

    return await wait_until(enough)


async def test_a_completion_is_announced(announcing: Gateway, receiver: Receiver) -> None:
    gid = await announced(announcing, f"{receiver.url}/hook")
    [request] = await receiver.received(1)
    generation = await announcing.ended(gid)
    for name in ("text", "choices", "lease", "reset_reason", "prompt"):
        del generation[name]
    assert Webhook(SECRET).verify(request.body, request.headers)["data"] == generation
    [attempt] = await attempts(announcing, gid, 1)
    assert attempt.pop("at") >= generation["ended_at"] - 1
    assert attempt.pop("seconds") >= 0
    assert attempt == {
        "n": 1, "webhook_id": f"msg_{gid}_completed", "type": "generation.completed", "status": 204, "error": None,
    }  # fmt: skip


async def test_the_chat_route_announces_too(announcing: Gateway, receiver: Receiver) -> None:
    body = request_body(model="sim-fast", tokencast={"webhook": {"url": receiver.url, "events": ["completed"]}})
    response = await announcing.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    [request] = await receiver.received(1)
    assert request.json["data"]["id"] == response.headers["x-generation-id"]


async def test_redelivery(announcing: Gateway, receiver: Receiver) -> None:
    receiver.reply = lambda _: answer(410)
    gid = await announced(announcing, receiver.url)
    await attempts(announcing, gid, 1)
    receiver.reply = lambda _: ACCEPTED
    path = f"/v1/generations/{gid}/deliveries"
    for unknown in ("2", "0", "01", "x"):
        response = await announcing.http.post(f"{path}/{unknown}/redeliver")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "delivery_not_found")
    response = await announcing.http.post(f"{path}/1/redeliver")
    assert response.status_code == 202
    assert response.json()["retry_at"] is not None
    first, second = await attempts(announcing, gid, 2)
    assert [one["status"] for one in (first, second)] == [410, 204]
    assert first["webhook_id"] == second["webhook_id"]


async def test_a_deletion_is_not_announced(announcing: Gateway, receiver: Receiver) -> None:
    """The cancellation that comes with it neither."""
    queued = await announcing.create(request_body(model="m", tokencast={"webhook": {"url": receiver.url}}))
    await announcing.http.delete(f"/v1/generations/{queued['id']}")
    assert (await announcing.http.get(f"/v1/generations/{queued['id']}/deliveries")).status_code == 410
    gid = await announced(announcing, receiver.url)
    await attempts(announcing, gid, 1)
    assert {request.json["data"]["id"] for request in receiver.requests} <= {gid, queued["id"]}
    assert f"msg_{queued['id']}_cancelled" not in {request.id for request in receiver.requests}


async def test_what_is_refused(announcing: Gateway, redis: EmbeddedRedis) -> None:
    wrong = {"url": "ftp://example.com/"}, {"url": "https://example.com/", "events": []}, {"url": "x"}, {"events": []}
    for webhook in wrong:
        response = await announcing.http.post("/v1/generations", json=request_body(tokencast={"webhook": webhook}))
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("tokencast.webhook")
    async with gateway(redis.url, TOKENCAST_WEBHOOK_SECRET=SECRET) as careful:
        for url in ("http://example.com/", "https://127.0.0.1/", "https://[::1]:8443/", "https://169.254.169.254/x"):
            for path in ("/v1/generations", "/v1/chat/completions"):
                response = await careful.http.post(path, json=request_body(tokencast={"webhook": {"url": url}}))
                error = response.json()["error"]
                assert (response.status_code, error["param"]) == (400, "tokencast.webhook.url")
                assert "169.254" not in error["message"]
    async with gateway(redis.url) as without:
        body = request_body(tokencast={"webhook": {"url": "https://example.com/"}})
        response = await without.http.post("/v1/generations", json=body)
        assert response.status_code == 400
        assert "TOKENCAST_WEBHOOK_SECRET" in response.json()["error"]["message"]


async def test_a_tenant_sees_its_own_only(own_redis: EmbeddedRedis, receiver: Receiver) -> None:
    entries = ",".join(f"{name}:{digest}" for name, digest in KEYS.items())
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=entries, **ALLOWED) as api:
        ours, theirs = ({"authorization": f"Bearer {name}"} for name in KEYS)
        created = await api.create(request_body(tokencast={"webhook": {"url": receiver.url}}), **ours)
        path = f"/v1/generations/{created['id']}"
        await api.http.post(f"{path}/cancel", headers=ours)
        await receiver.received(1)
        token = (await api.http.post(f"{path}/token", headers=ours)).json()["token"]
        for headers, query, status in (({}, "", 401), ({}, f"?token={token}", 401), (theirs, "", 404)):
            assert (await api.http.get(f"{path}/deliveries{query}", headers=headers)).status_code == status
            response = await api.http.post(f"{path}/deliveries/1/redeliver{query}", headers=headers)
            assert response.status_code == status
        assert (await api.http.get(f"{path}/deliveries", headers=ours)).status_code == 200


async def test_the_default_url_and_the_metrics(own_redis: EmbeddedRedis, receiver: Receiver) -> None:
    """A gateway alone delivers what it cancels; nothing of the URL but its host is logged."""
    url = receiver.url.replace("http://", "http://Hunter1:Hunter2@") + "/Hunter3?key=Hunter4"
    receiver.reply = lambda _: answer(500, "retry-after: 3000")
    async with gateway(own_redis.url, TOKENCAST_WEBHOOK_URL=url, **ALLOWED) as api:
        before = await scrape(api.http)
        assert value(before, "tokencast_webhooks_waiting") == 0
        assert value(before, "tokencast_webhook_deliveries_total", outcome="delivered") == 0
        gid = (await api.create())["id"]
        await api.http.post(f"/v1/generations/{gid}/cancel")
        await attempts(api, gid, 1)
        after = await scrape(api.http)
        assert value(after, "tokencast_webhooks_waiting") == 1
        assert value(after, "tokencast_webhook_deliveries_total", outcome="failed") == 1
        await api.process.says(r"webhook failed \(500\) by 127\.0\.0\.1")
        assert "Hunter" not in api.process.output
    assert receiver.requests[0].json["type"] == "generation.cancelled"


async def test_a_worker_alone_delivers(own_redis: EmbeddedRedis, sim: str, receiver: Receiver) -> None:
    async with gateway(own_redis.url, **ALLOWED) as api:
        gid = await announced(api, receiver.url)
    async with worker(own_redis.url, sim, **ALLOWED):
        [request] = await receiver.received(1)
    assert request.id == f"msg_{gid}_completed"


async def test_a_tenant_has_a_url_and_a_secret_of_its_own(
    own_redis: EmbeddedRedis, sim: str, receiver: Receiver
) -> None:
    """They stand above those of all tenants."""
    secret = "whsec_" + "b3VycyEh" * 4
    own = {"ours": {"webhook": {"url": f"{receiver.url}/ours", "events": ["completed"]}, "webhook_secret": secret}}
    settings = {
        **ALLOWED,
        "TOKENCAST_API_KEYS": ",".join(f"{name}:{digest}" for name, digest in KEYS.items()),
        "TOKENCAST_WEBHOOK_URL": f"{receiver.url}/all",
        "TOKENCAST_TENANTS": json.dumps(own),
    }
    async with gateway(own_redis.url, **settings) as api, worker(own_redis.url, sim, **settings):
        for name in KEYS:
            created = await api.create(request_body(model="sim-fast"), authorization=f"Bearer {name}")
            await receiver.received(1)
            request = receiver.requests.pop()
            target = {"ours": "/ours", "theirs": "/all"}[name]
            assert (request.json["data"]["id"], request.target) == (created["id"], target)
            Webhook({"ours": secret, "theirs": SECRET}[name]).verify(request.body, request.headers)

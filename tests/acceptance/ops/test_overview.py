"""Requests of the dashboard in addition to its streams: the status summary, and the request of a generation."""

from __future__ import annotations

import hashlib
from typing import Any

from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Gateway, gateway, request_body, wait_until, worker

KEYS = {"acme": "key-of-acme", "other": "key-of-other"}
KEYED = {
    "TOKENCAST_API_KEYS": ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items())
}


def key_of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


async def overview(api: Gateway, **headers: str) -> Any:
    answer = await api.http.get("/v1/overview", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_overview_counts_generations_queue_and_workers(own_redis: EmbeddedRedis, sim: str) -> None:
    async with gateway(own_redis.url) as api:
        empty = await overview(api)
        assert set(empty["generations"].values()) == {0}
        assert empty["queue"] == {"depth": 0, "oldest_seconds": 0}
        assert empty["workers"] == []
        gids = [(await api.create(request_body(model="sim")))["id"] for _ in range(3)]
        await api.http.post(f"/v1/generations/{gids[0]}/cancel")
        waiting = await overview(api)
        assert waiting["generations"] == {**empty["generations"], "queued": 2, "cancelled": 1}
        assert waiting["queue"]["depth"] == 2
        assert waiting["queue"]["oldest_seconds"] > 0
        async with worker(own_redis.url, sim, TOKENCAST_SLOTS="7"):
            for gid in gids[1:]:
                await api.ended(gid)

            async def settled() -> bool:
                return (await overview(api))["workers"] == [{"slots": 7, "running": 0}]

            await wait_until(settled)
            assert (await overview(api))["generations"] == {**empty["generations"], "completed": 2, "cancelled": 1}


async def test_a_tenant_sees_only_its_own_counts_and_subscribers(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url, **KEYED) as api:
        assert (await api.http.get("/v1/overview")).status_code == 401
        gid = (await api.create(None, **key_of("acme")))["id"]
        stream = api.follow(gid, **key_of("acme"))
        await anext(stream)
        assert (await overview(api, **key_of("acme")))["subscribers"] == {"total": 1, "generations": {gid: 1}}
        others = await overview(api, **key_of("other"))
        assert others["subscribers"] == {"total": 0, "generations": {}}
        assert set(others["generations"].values()) == {0}


async def test_a_request_is_shown_only_with_the_api_key(own_redis: EmbeddedRedis) -> None:
    """Not with a token, because clients that may read the output may not be allowed to see the prompt."""
    async with gateway(own_redis.url, **KEYED) as api:
        body = request_body(temperature=0.5, metadata={"order": "17"}, on_upstream_error="restart")
        gid = (await api.create(body, **key_of("acme")))["id"]
        path = f"/v1/generations/{gid}"
        generation = (await api.http.get(f"{path}?include=request", headers=key_of("acme"))).json()
        assert generation["request"] == body
        assert "request" not in (await api.http.get(path, headers=key_of("acme"))).json()
        assert (await api.http.get(f"{path}?include=request", headers=key_of("other"))).status_code == 404
        for unknown in ("everything", ""):
            assert (await api.http.get(f"{path}?include={unknown}", headers=key_of("acme"))).status_code == 400
        token = (await api.http.post(f"{path}/token", headers=key_of("acme"))).json()["token"]
        assert (await api.http.get(f"{path}?token={token}")).status_code == 200
        assert (await api.http.get(f"{path}?token={token}&include=request")).status_code == 401
        await api.http.delete(path, headers=key_of("acme"))
        assert (await api.http.get(f"{path}?include=request", headers=key_of("acme"))).status_code == 410

"""API keys change while a gateway runs: their file is read again, and streams of keys that are no longer valid end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.cli.test_cli import tokencast
from tests.support import Gateway, gateway, wait_until


def entry(name: str, more: str = "") -> str:
    return f"{name}:{hashlib.sha256(f'key-{name}'.encode()).hexdigest()}{more}"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-{name}"}


def put(file: Path, *entries: str) -> None:
    """Replace the file as Kubernetes does with that of a Secret: by a symbolic link to another one."""
    version = file.with_name(f"{len(list(file.parent.iterdir()))}.txt")
    version.write_text("\n".join(entries))
    link = file.with_name("new")
    link.symlink_to(version)
    os.replace(link, file)


async def status(api: Gateway, name: str) -> tuple[int, str]:
    response = await api.http.get("/v1/generations", headers=bearer(name))
    return response.status_code, response.json().get("error", {}).get("code", "")


async def test_keys_are_read_again_when_their_file_changes(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    put(file, entry("anna"), entry("ben"))
    async with gateway(own_redis.url, TOKENCAST_API_KEYS_FILE=str(file)) as api:
        gid = (await api.create(**bearer("anna")))["id"]
        token = (await api.http.post(f"/v1/generations/{gid}/token", headers=bearer("anna"))).json()["token"]
        one, all_of_anna = f"/v1/generations/{gid}/events", "/v1/activity"
        async with (
            api.http.stream("GET", one, headers=bearer("anna")) as events,
            api.http.stream("GET", all_of_anna, headers=bearer("anna")) as activity,
            api.http.stream("GET", "/v1/activity", headers=bearer("ben")) as other,
        ):
            assert [each.status_code for each in (events, activity, other)] == [200, 200, 200]
            put(file, entry("ben"), entry("carl"))
            for stream in (events, activity):
                assert "retry: " in await rest_of(stream.aiter_text())
            assert await status(api, "anna") == (401, "invalid_api_key")
            assert (await api.http.get(one, params={"token": token})).status_code == 401
            assert await status(api, "carl") == (200, "")

            put(file, entry("ben"), "nonsense")
            await api.process.says(r"ERROR .* the API keys remain as they were: TOKENCAST_API_KEYS: entry 2 is not")
            assert await status(api, "carl") == (200, "")

            put(file, entry("ben", ":expires=2020-01-31"), entry("carl", ":read:expires=2099-01-31"))
            assert "retry: " in await rest_of(other.aiter_text())
            assert await status(api, "ben") == (401, "api_key_expired")
            assert await status(api, "carl") == (200, "")
            await last_uses_are_listed(api, own_redis.url, file)
            refused = await api.http.post("/v1/generations", json={}, headers=bearer("carl"))
            assert refused.json()["error"]["code"] == "read_only_key"

            put(file, entry("anna"))
            await wait_until(lambda: is_valid(api, "anna"))
            assert (await api.http.head(one, params={"token": token})).status_code == 200
        assert api.process.output.count("remain as they were") == 1


async def last_uses_are_listed(api: Gateway, redis_url: str, file: Path) -> None:
    """To operators, with ends; and by the command."""
    refused = await api.http.get("/v1/keys", headers=bearer("carl"))
    assert refused.json()["error"]["code"] == "operator_required"
    put(file, entry("carl", ":read:expires=2099-01-31"), entry("ops", ":operator"), entry("unused"))
    await wait_until(lambda: is_valid(api, "ops"))
    listed = (await api.http.get("/v1/keys", headers=bearer("ops"))).json()["data"]
    digest = entry("carl").partition(":")[2]
    assert [one["tenant"] for one in listed] == ["carl", "ops", "unused"]
    assert listed[0] == {
        "key": digest[:8],
        "tenant": "carl",
        "role": "read",
        "expires_at": datetime(2099, 2, 1, tzinfo=UTC).timestamp(),
        "last_used_at": listed[0]["last_used_at"],
    }
    assert listed[0]["last_used_at"] > 0
    assert listed[2]["last_used_at"] is None
    shown = await tokencast("key", "--list", url=api.url, TOKENCAST_API_KEY="key-ops")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[1][:4] == [digest[:8], "carl", "read", "2099-01-31"]
    assert rows[3][1:] == ["unused", "tenant", "-", "-"]
    async with connect(redis_url) as broker:
        used = await wait_until(lambda: broker.queue.redis.execute("HGET", keys.KEY_USES, digest[:16]))
        assert int(used) > 0


async def rest_of(parts: AsyncIterator[str]) -> str:
    return "".join([part async for part in parts])


async def is_valid(api: Gateway, name: str) -> bool:
    return (await status(api, name))[0] == 200

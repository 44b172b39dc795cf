"""`tokencast key`: the printed key authenticates its tenant and is not stored anywhere."""

from __future__ import annotations

import json

import pytest

from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.cli.test_cli import tokencast
from tests.support import gateway, gather, request_body


async def test_a_printed_key_authenticates_its_tenant(redis: EmbeddedRedis) -> None:
    told, as_json = await gather(tokencast("key", "anna", url=""), tokencast("key", "ben", "--json", url=""))
    of_anna = dict(line.split() for line in told.out.splitlines())
    of_ben = json.loads(as_json.out)
    assert [set(made) for made in (of_anna, of_ben)] == [{"key", "entry"}] * 2
    async with gateway(redis.url, TOKENCAST_API_KEYS=f"{of_anna['entry']},{of_ben['entry']}") as api:
        anna, ben = ({"authorization": f"Bearer {made['key']}"} for made in (of_anna, of_ben))
        gid = (await api.create(**anna))["id"]
        assert (await api.http.get(f"/v1/generations/{gid}", headers=anna)).status_code == 200
        assert (await api.http.get(f"/v1/generations/{gid}", headers=ben)).status_code == 404


async def test_a_key_has_a_role(redis: EmbeddedRedis) -> None:
    roles = ("operator", "read", "tenant")
    made = await gather(*(tokencast("key", "ops", "--role", role, "--json", url="") for role in roles))
    found = {role: json.loads(done.out) for role, done in zip(roles, made, strict=True)}
    assert [found[role]["entry"].split(":")[2:] for role in roles] == [["operator"], ["read"], []]
    async with gateway(redis.url, TOKENCAST_API_KEYS=",".join(found[role]["entry"] for role in roles)) as api:
        for role, status in (("operator", 202), ("read", 403), ("tenant", 202)):
            headers = {"authorization": f"Bearer {found[role]['key']}"}
            answer = await api.http.post("/v1/generations", json=request_body(), headers=headers)
            assert (answer.status_code, "tenant" in answer.json()) == (status, role == "operator")
    refused = await tokencast("key", "ops", "--role", "admin", url="")
    assert refused.code == 2


async def test_every_printed_key_is_different() -> None:
    made = await gather(*(tokencast("key", "anna", url="") for _ in range(2)))
    assert len({done.out for done in made}) == 2
    for done in made:
        key = done.out.split()[1]
        assert len(key.removeprefix("tck_")) == 43  # 256 bits
        assert done.err == ""


@pytest.mark.parametrize("tenant", ["an na", "anna:ben", "", "a,b", "anna\n"])
async def test_an_invalid_tenant_name_gets_no_key(tenant: str) -> None:
    refused = await tokencast("key", tenant, url="")
    assert (refused.code, refused.out) == (2, "")
    assert "letters and digits" in refused.err

"""Which pages may call from a browser: exactly the origins that are listed, and nobody where none is."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from broker.embedded import EmbeddedRedis
from tests.support import Gateway, gateway

LISTED = ("https://app.example", "http://localhost:3000")
FOREIGN = ("https://evil.example", "https://app.example.evil.example", "http://app.example", "null", "*")
SENT = "authorization, content-type, idempotency-key, last-event-id"


@pytest.fixture(scope="module")
async def open_to_two(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, TOKENCAST_CORS_ORIGINS=", ".join(LISTED)) as started:
        yield started


def preflight(origin: str, method: str) -> dict[str, str]:
    asked = {"access-control-request-method": method, "access-control-request-headers": SENT}
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
        assert {"x-generation-id", "x-request-id", "location", "retry-after"} <= exposed


async def test_nobody_is_let_in_by_default(api: Gateway) -> None:
    for answer in (
        await api.http.options("/v1/generations", headers=preflight(LISTED[0], "POST")),
        await api.http.get("/v1/generations", headers={"origin": LISTED[0]}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]

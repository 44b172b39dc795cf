"""Area: keys, tenants, tokens."""

from __future__ import annotations

from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, ended, running
from tests.support import Gateway, gather

GENERATIONS = "/v1/generations"


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("access")
    gid = await ended(rec, api, "mine", "length=1")
    await _without_a_key(stage.keyed, rec, gid)
    await _another_tenant(stage.of("other"), rec, gid)
    await _tokens(stage, api, rec, gid)


async def _without_a_key(api: Gateway, rec: Recorder, gid: str) -> None:
    for method, path in (
        ("POST", GENERATIONS), ("GET", GENERATIONS), ("GET", f"{GENERATIONS}/{gid}"),
        ("DELETE", f"{GENERATIONS}/{gid}"), ("POST", f"{GENERATIONS}/{gid}/cancel"),
        ("POST", f"{GENERATIONS}/{gid}/token"), ("GET", f"{GENERATIONS}/{gid}/events"),
        ("HEAD", f"{GENERATIONS}/{gid}/events"),
        ("GET", f"/v1/events?generation={gid}"), ("GET", "/v1/activity"), ("POST", "/v1/chat/completions"),
        ("GET", f"/v1/chat/completions/{gid}"), ("GET", "/v1/models"), ("GET", "/v1/models/sim"),
        ("GET", "/v1/overview"), ("GET", "/v1/history"), ("GET", "/v1/workers"), ("POST", "/v1/workers/x/drain"),
        ("GET", f"{GENERATIONS}/{gid}/subscribers"),
        ("GET", "/v1/me"),
        ("GET", "/healthz"), ("GET", "/readyz"), ("HEAD", "/metrics"), ("HEAD", "/openapi.json"), ("HEAD", "/docs"),
        ("HEAD", "/"), ("GET", "/nowhere"), ("OPTIONS", GENERATIONS),
    ):  # fmt: skip
        await rec.ask("without a key", api, method, path)
    for title, headers in (
        ("a wrong key", {"authorization": "Bearer wrong"}),
        ("another scheme", {"authorization": "Basic a2V5LW9mLWFjY2Vzczo="}),
    ):
        await rec.ask(title, api, "GET", GENERATIONS, headers=headers)


async def _another_tenant(api: Gateway, rec: Recorder, gid: str) -> None:
    await rec.ask("whose key it is", api, "GET", "/v1/me")
    for method, path in (
        ("GET", f"{GENERATIONS}?limit=1"), ("GET", f"{GENERATIONS}/{gid}"),
        ("GET", f"{GENERATIONS}/{gid}?include=request"), ("DELETE", f"{GENERATIONS}/{gid}"),
        ("POST", f"{GENERATIONS}/{gid}/cancel"), ("POST", f"{GENERATIONS}/{gid}/token"),
        ("GET", f"{GENERATIONS}/{gid}/events"), ("GET", f"/v1/events?generation={gid}"),
        ("GET", f"{GENERATIONS}/{gid}/subscribers"), ("GET", "/v1/history?tenant=access"), ("GET", "/v1/workers"),
        ("GET", f"/v1/chat/completions/{gid}"), ("GET", f"/v1/chat/completions/{gid}?stream=true"),
    ):  # fmt: skip
        await rec.ask("another tenant's", api, method, path)


async def _tokens(stage: Stage, api: Gateway, rec: Recorder, gid: str) -> None:
    path = f"{GENERATIONS}/{gid}/token"
    made = await rec.ask("a token", api, "POST", path)
    await rec.ask("a token for a minute", api, "POST", path, body={"ttl_seconds": 60})
    for body in ({"ttl_seconds": 0}, {"ttl_seconds": "60"}, {"ttl_seconds": 86400 * 365}, []):
        await rec.ask("a token, refused", api, "POST", path, body=body)
    await rec.ask("a token, no JSON", api, "POST", path, content=b"{")

    token, reader = made.json["token"], stage.keyed
    other = await ended(rec, api, "mine too", "length=1")
    for method, at in (
        ("GET", f"{GENERATIONS}/{gid}"), ("HEAD", f"{GENERATIONS}/{gid}"), ("GET", f"{GENERATIONS}/{gid}/events"),
        ("GET", f"/v1/chat/completions/{gid}"), ("GET", f"/v1/events?generation={gid}"),
        ("GET", f"{GENERATIONS}/{other}"), ("GET", f"/v1/events?generation={other}"), ("GET", GENERATIONS),
        ("GET", f"{GENERATIONS}/{gid}?include=request"), ("DELETE", f"{GENERATIONS}/{gid}"),
        ("POST", f"{GENERATIONS}/{gid}/cancel"), ("POST", f"{GENERATIONS}/{gid}/token"), ("GET", "/v1/activity"),
        ("GET", "/v1/overview"), ("GET", "/v1/models"),
    ):  # fmt: skip
        await rec.ask("with a token", reader, method, f"{at}{'&' if '?' in at else '?'}token={token}")
    await rec.ask("with an invalid token", reader, "GET", f"{GENERATIONS}/{gid}?token=none")
    await rec.ask("with two tokens", reader, "GET", f"{GENERATIONS}/{gid}?token={token}&token={token}")
    await _expiry(api, reader, rec)


async def _expiry(api: Gateway, reader: Gateway, rec: Recorder) -> None:
    gid = await running(rec, api, "read by a token")
    answer = await api.http.post(f"{GENERATIONS}/{gid}/token", json={"ttl_seconds": 2})
    token = f"token={answer.json()['token']}"
    paths = (
        f"{GENERATIONS}/{gid}/events?after=latest",
        f"/v1/chat/completions/{gid}?stream=true",
        f"/v1/events?generation={gid}@latest",
    )
    await gather(*(rec.ask("until the token expires", reader, "GET", f"{path}&{token}") for path in paths))
    await rec.ask("the token has expired", reader, "GET", f"{GENERATIONS}/{gid}?{token}")
    await rec.ask("the token has expired", reader, "GET", f"{GENERATIONS}/{gid}/events?{token}")
    await api.http.post(f"{GENERATIONS}/{gid}/cancel")

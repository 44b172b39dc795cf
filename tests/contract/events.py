"""Area: the native event stream of one generation."""

from __future__ import annotations

from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, cancel_running, ended, named, prompt, running
from tests.contract.storage import trimmed
from tests.support import Gateway, forget_refusals, gather


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("events")
    await _forms(stage, api, rec)
    await _resume(api, rec)
    await _pages(api, rec)
    await _live(api, rec)
    gid = await ended(rec, api, "trimmed", "length=8")
    await trimmed(stage.redis.url, gid, keep=4)
    await rec.ask("gap", api, "GET", f"/v1/generations/{gid}/events")
    await rec.ask("gap at a speed", api, "GET", f"/v1/generations/{gid}/events?speed=1000")
    await rec.ask("gap in a page", api, "GET", f"/v1/generations/{gid}/events", headers={"accept": "application/json"})
    await cancel_running(api)


async def _forms(stage: Stage, api: Gateway, rec: Recorder) -> None:
    gids = await gather(
        ended(rec, api, "plain", "length=3"),
        ended(rec, api, "tools", "length=0 tools=1"),
        ended(rec, api, "reasoning", "length=1 reasoning=2"),
        ended(rec, api, "unicode", "unicode=1"),
        ended(rec, api, "azure", "length=1 shape=azure"),
        ended(rec, api, "gabforge", "length=1 shape=gabforge"),
        ended(rec, api, "two choices", "length=1", n=2),
        ended(
            rec,
            api,
            "started twice",
            "fault=truncate at=2 times=1 speed=5 label=events-reset",
            on_upstream_error="restart",
        ),
        ended(rec, api, "truncated", "fault=truncate at=2"),
        ended(rec, api, "refused by the upstream", "fault=404"),
    )
    waited = await ended(rec, api, "waited", "length=1 fault=429 times=1 label=events-wait retry_after=0.1")
    await forget_refusals(stage.redis.url)
    for gid in (*gids, waited):
        await rec.ask("events", api, "GET", f"/v1/generations/{gid}/events")


async def _resume(api: Gateway, rec: Recorder) -> None:
    gid = await ended(rec, api, "resumed")
    path, attempt = f"/v1/generations/{gid}/events", (await api.get(gid))["cursor"].partition("-")[0]
    last = (await api.get(gid))["cursor"]
    for query, headers in (
        (f"?after={attempt}-3", {}),
        ("?after=0-1", {}),
        ("?after=", {}),
        ("", {"last-event-id": f"{attempt}-4"}),
        (f"?after={attempt}-1", {"last-event-id": f"{attempt}-4"}),
        (f"?lastEventId={attempt}-4", {}),
        (f"?after={attempt}-1&lastEventId={attempt}-4", {}),
        ("?after=latest", {}),
        (f"?after={last}", {}),
        ("", {"last-event-id": last}),
        (f"?after={attempt}-99", {}),
        ("?after=12-5", {}),
        ("", {"last-event-id": "12-5"}),
        ("", {"last-event-id": "malformed"}),
        ("?after=malformed", {}),
        ("?after=0-1&after=0-1", {}),
        ("?lastEventId=0-1&lastEventID=0-1", {}),
        ("?speed=1000", {}),
        (f"?speed=1000&after={attempt}-4", {}),
        ("?speed=0", {}),
        ("?speed=fast", {}),
        ("?speed=", {}),
        ("?bare=true", {}),
        ("?unheard-of=1", {"accept": "text/event-stream"}),
    ):
        await rec.ask("resume", api, "GET", path + query, headers=headers)
    await rec.ask("HEAD", api, "HEAD", path)


async def _pages(api: Gateway, rec: Recorder) -> None:
    gid = await ended(rec, api, "paged", "length=2")
    path, attempt = f"/v1/generations/{gid}/events", (await api.get(gid))["cursor"].partition("-")[0]
    accept = {"accept": "application/json"}
    for query in (
        "", "?limit=2", f"?limit=2&after={attempt}-1", f"?after={attempt}-99", "?limit=0", "?limit=1001",
        "?after=malformed", "?after=latest",
    ):  # fmt: skip
        await rec.ask("page", api, "GET", path + query, headers=accept)
    await rec.ask("page: Last-Event-ID", api, "GET", path, headers={**accept, "last-event-id": f"{attempt}-3"})
    await rec.ask("page: HEAD", api, "HEAD", path, headers=accept)


async def _live(api: Gateway, rec: Recorder) -> None:
    slow = await named(rec, api, "slow", prompt("speed=10 length=3"))
    await rec.ask("follow from the beginning", api, "GET", f"/v1/generations/{slow}/events")

    gid = await running(rec, api, "cancelled while it is followed")
    path = f"/v1/generations/{gid}/events"
    async with rec.open("follow from now on, until it is cancelled", api, "GET", f"{path}?after=latest") as following:
        await following.until("\n\n")
        await api.http.post(f"/v1/generations/{gid}/cancel")
        await following.rest()
    await rec.ask("events of a cancelled one", api, "GET", path)
    await rec.ask("events of a cancelled one, at a speed", api, "GET", f"{path}?speed=1000")

    gid = await running(rec, api, "deleted while it is followed")
    async with rec.open("follow until it is deleted", api, "GET", f"/v1/generations/{gid}/events") as following:
        await following.until("-3\n")
        await api.http.delete(f"/v1/generations/{gid}")
        await following.rest()

    gid = await running(rec, api, "replayed while it runs")
    async with rec.open(
        "a replay that catches up", api, "GET", f"/v1/generations/{gid}/events?speed=1000"
    ) as following:
        await following.until("-3\n")
        await api.http.post(f"/v1/generations/{gid}/cancel")
        await following.rest()

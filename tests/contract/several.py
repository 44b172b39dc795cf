"""Area: several generations on one connection, and the activity."""

from __future__ import annotations

import re

from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, ended, named, prompt, running
from tests.support import Gateway, forget_refusals

EVENTS, ACTIVITY = "/v1/events", "/v1/activity"


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("several")
    await _activity(stage, api, rec)
    await _several(api, rec)


async def _several(api: Gateway, rec: Recorder) -> None:
    gid = await ended(rec, api, "one", "length=1")
    other = await ended(rec, api, "other", "length=1")
    attempt, _, last = (await api.get(gid))["cursor"].partition("-")
    one = f"{EVENTS}?generation={gid}"
    unknown = f"gen_{'0' * 10}10{'0' * 22}"
    await rec.ask("one", api, "GET", one)
    await rec.ask("one, twice named", api, "GET", f"{one}&generation={gid}")
    await rec.ask("one, after a cursor", api, "GET", f"{one}@{attempt}-2")
    await rec.ask("one, after an unknown cursor", api, "GET", f"{one}@{attempt}-99")
    await rec.ask("one, after its end", api, "GET", f"{one}@{attempt}-{last}")
    await rec.ask("one, from now on", api, "GET", f"{one}@latest")
    await rec.ask("one, a Last-Event-ID that is not of this URL", api, "GET", one, headers={"last-event-id": "12-5"})
    await rec.ask("HEAD", api, "HEAD", one)
    await rec.ask("one that is unknown", api, "GET", f"{EVENTS}?generation={unknown}")
    for query in ("", "?generation=", f"?generation={gid}@malformed", "?generation=nothing"):
        await rec.ask("refused", api, "GET", f"{EVENTS}{query}")
    many = "&".join(f"generation=gen_{n}" for n in range(101))
    await rec.ask("more than a hundred", api, "GET", f"{EVENTS}?{many}")
    await rec.ask("another method", api, "POST", EVENTS)

    both = f"{EVENTS}?generation={gid}&generation={other}"
    async with rec.open("two, each in its order", api, "GET", both) as stream:
        await stream.rest()
        stream.body[:] = _sorted(bytes(stream.body))
    async with rec.open(
        "one, and one that is unknown", api, "GET", f"{one}@{attempt}-2&generation={unknown}"
    ) as stream:
        await stream.rest()

    live = await running(rec, api, "followed")
    path = f"{EVENTS}?generation={live}@latest"
    async with rec.open("from now on, until it is cancelled", api, "GET", path) as stream:
        await stream.until("\n\n")
        vector = re.search(r"id: (\S+)", stream.body.decode())
        await api.http.post(f"/v1/generations/{live}/cancel")
        await stream.rest()
    assert vector is not None
    await rec.ask("resumed by all cursors", api, "GET", path, headers={"last-event-id": vector[1]})
    live = await running(rec, api, "deleted")
    async with rec.open("until it is deleted", api, "GET", f"{EVENTS}?generation={live}") as stream:
        await stream.until('-3",')
        await api.http.delete(f"/v1/generations/{live}")
        await stream.rest()


def _sorted(stream: bytes) -> bytes:
    """Sort the blocks by generation and mask the stream's own ids: the interleaving depends on time."""
    stream = re.sub(rb"(?m)^id: \S+$", b"id: <vector>", stream)
    blocks = [block + b"\n\n" for block in stream.split(b"\n\n") if block]
    return b"".join(sorted(blocks, key=lambda block: re.findall(rb'"generation":"(\w+)"', block)))


async def _activity(stage: Stage, api: Gateway, rec: Recorder) -> None:
    gid = await named(rec, api, "watched", prompt("length=1"))
    await api.ended(gid)
    for title, query, headers in (
        ("from the beginning", "", {}),
        ("after an id that is not kept any more", "?after=1", {}),
        ("after a malformed Last-Event-ID", "", {"last-event-id": "malformed"}),
    ):
        async with rec.open(f"activity {title}", api, "GET", f"{ACTIVITY}{query}", headers=headers) as stream:
            await stream.until_block("event: completed")
    async with rec.open("activity from now on", api, "GET", f"{ACTIVITY}?after=latest") as stream:
        await stream.until("\n\n")
        for name, directive, more in (
            ("watched: completed", "length=1", {"metadata": {"a": "b"}}),
            ("watched: failed", "fault=404", {}),
            ("watched: waited", "length=1 fault=429 times=1 label=activity-wait retry_after=0.1", {}),
            (
                "watched: reset",
                "length=1 fault=truncate at=1 times=1 label=activity-reset",
                {"on_upstream_error": "restart"},
            ),
        ):
            gid = await ended(rec, api, name, directive, **more)
            await forget_refusals(stage.redis.url)
            status = (await api.get(gid))["status"]
            await stream.until_block(f'data: {{"id":"{gid}","object":"generation","status":"{status}"')
        gid = await running(rec, api, "watched: cancelled")
        await api.http.post(f"/v1/generations/{gid}/cancel")
        await stream.until_block("event: cancelled")
    await rec.ask("HEAD", api, "HEAD", ACTIVITY)
    await rec.ask("malformed", api, "GET", f"{ACTIVITY}?after=malformed")
    await rec.ask("another method", api, "POST", ACTIVITY)

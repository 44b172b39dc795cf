"""Query parameters, and `Accept`: values are checked before they are used, and invalid ones are named."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Frame, Gateway, Writer, gateway, request_body

PAGE = {"accept": "application/json"}


@pytest.fixture(scope="module")
async def many_generations(redis: EmbeddedRedis, broker: Broker) -> AsyncGenerator[Gateway, None]:
    """A gateway whose tenant has more than a hundred generations."""
    limits = {"TOKENCAST_TENANT_QUEUED": "0", "TOKENCAST_TENANT_PER_MINUTE": "0"}
    async with gateway(redis.url, **limits) as api:
        for _ in range(105):
            await broker.enqueue(request_body())
        yield api


@pytest.fixture(scope="module")
async def ended_generation(api: Gateway, broker: Broker) -> Writer:
    """An ended generation of four chunks."""
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    await writer.append("one ", "two ", "three ", "four")
    await writer.finish()
    return writer


NO_LIMIT = [
    "0", "101", "0000000999", "000000001" + "0" * 30, "1" * 30, "010", "-1", "+1", "1.0", "1e1", "x", "%200", "%31%00",
    "%D9%A3", "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("limit", NO_LIMIT, ids=lambda text: text[:12])
async def test_an_invalid_limit_is_refused(many_generations: Gateway, ended_generation: Writer, limit: str) -> None:
    refused = [await many_generations.http.get(f"/v1/generations?limit={limit}")]
    if limit != "101":
        refused.append(
            await many_generations.http.get(
                f"/v1/generations/{ended_generation.gid}/events?limit={limit}", headers=PAGE
            )
        )
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


async def test_a_limit_bounds_the_page(many_generations: Gateway, ended_generation: Writer) -> None:
    for limit in (1, 7, 100):
        page = (await many_generations.http.get(f"/v1/generations?limit={limit}")).json()
        assert (len(page["data"]), page["has_more"]) == (limit, True)
    events = (
        await many_generations.http.get(f"/v1/generations/{ended_generation.gid}/events?limit=1000", headers=PAGE)
    ).json()["data"]
    assert len(events) == 7
    assert len((await many_generations.http.get("/v1/generations?limit=&status=&after=")).json()["data"]) == 20


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("/v1/generations?limit=5&limit=5", "limit"),
        ("/v1/generations?model=a&model=b", "model"),
        ("/v1/generations?metadata[a]=1&metadata[a]=2", "metadata[a]"),
        ("/v1/generations?since=1&created_after=1", "created_after"),
        ("/v1/generations?until=soon", "until"),
        ("/v1/generations?created_before=2026-13-01", "created_before"),
        ("/v1/generations?group=%00", "group"),
        ("/v1/generations?" + "&".join(f"metadata[{n}]=1" for n in range(17)), "metadata"),
        ("/v1/generations?after=&after=", "after"),
        ("/v1/generations?status=Queued", "status"),
        ("/v1/generations?status=queued,done", "status"),
        ("/v1/generations?state=queued", "state"),
        ("/v1/generations?metadata=a", "metadata"),
        ("/v1/generations?limit[a]=1", "limit[a]"),
        ("/v1/generations/{id}?include=request&include=request", "include"),
        ("/v1/generations/{id}?include=", "include"),
        ("/v1/generations/{id}?include=text", "include"),
        ("/v1/generations/{id}?token=a&token=b", "token"),
        ("/v1/generations/{id}/events?after=0-1&after=0-1", "after"),
        ("/v1/generations/{id}/events?speed=2&speed=3", "speed"),
        ("/v1/generations/{id}/events?speed=", "speed"),
        ("/v1/generations/{id}/events?lastEventId=0-1&lastEventId=0-1", "lastEventId"),
        ("/v1/generations/{id}/events?lastEventId=0-1&Last-Event-ID=0-1", "lastEventId"),
        ("/v1/activity?after=1&after=2", "after"),
        ("/v1/activity?after=now", "after"),
        ("/v1/events?generation={id}&token=a&token=b", "token"),
        ("/v1/chat/completions/{id}?stream=yes", "stream"),
        ("/v1/chat/completions/{id}?stream=true&stream=true", "stream"),
        ("/v1/chat/completions/{id}?stream=true&include_usage=1", "include_usage"),
        ("/v1/chat/completions/{id}?stream=true&bare=1", "bare"),
        ("/v1/chat/completions/{id}?stream=true&after=0-1&after=0-1", "after"),
    ],
)
async def test_unknown_values_and_repeated_parameters_are_named(
    api: Gateway, ended_generation: Writer, query: str, param: str
) -> None:
    answer = await api.http.get(query.replace("{id}", ended_generation.gid))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# --- cursors in the query --------------------------------------------------------------------------------------------


def ids(frames: list[Frame]) -> list[str | None]:
    return [frame.id for frame in frames]


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID", "Last-Event-ID"])
async def test_a_polyfill_resumes_after_its_last_event(api: Gateway, ended_generation: Writer, name: str) -> None:
    """If no header can be sent, the last id is in the query. A reconnecting client also sends its first URL again."""
    everything = await api.events(ended_generation.gid)
    third, fifth = everything[2].id, everything[4].id
    rest = ids(everything[5:])
    assert len(rest) == 2
    assert ids(await api.events(ended_generation.gid, f"?{name}={fifth}")) == rest
    assert ids(await api.events(ended_generation.gid, f"?after={third}&{name}={fifth}")) == rest
    assert ids(await api.events(ended_generation.gid, f"?after=latest&{name}={fifth}")) == rest
    assert ids(await api.events(ended_generation.gid, f"?{name}={third}", **{"last-event-id": str(fifth)})) == rest
    assert ids(await api.events(ended_generation.gid, f"?{name}=")) == ids(everything)
    unknown = await api.events(ended_generation.gid, f"?{name}=nonsense")
    assert (unknown[0].event, ids(unknown[1:])) == ("reset", ids(everything))
    page = (await api.http.get(f"/v1/generations/{ended_generation.gid}/events?{name}={fifth}", headers=PAGE)).json()
    assert [event["id"] for event in page["data"]] == rest


async def test_a_polyfill_resumes_several_generations(api: Gateway, ended_generation: Writer, broker: Broker) -> None:
    other = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    await other.append("one")
    await other.finish()
    path = f"/v1/events?generation={ended_generation.gid}&generation={other.gid}"
    frames = [frame async for frame in api.stream("GET", path)]
    last = [frame.id for frame in frames if frame.id][-1]
    assert [frame async for frame in api.stream("GET", f"{path}&lastEventId={last}")] == []


async def test_a_polyfill_resumes_the_activity(api: Gateway, ended_generation: Writer) -> None:
    async def first(query: str) -> str | None:
        async with aclosing(api.stream("GET", f"/v1/activity{query}")) as stream:
            return (await anext(stream)).event

    assert await first("") == "created"
    assert await first("?lastEventId=1") == "gap"
    assert await first("?after=latest&lastEventId=1") == "gap"


# --- Accept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
        ("application/json, text/event-stream", "text/event-stream"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json, text/event-stream;q=0.1", "application/json"),
    ],
)
async def test_events_are_sent_in_the_accepted_format(
    api: Gateway, ended_generation: Writer, accept: str | None, kind: str
) -> None:
    headers = {} if accept is None else {"accept": accept}
    request = api.http.build_request("GET", f"/v1/generations/{ended_generation.gid}/events", headers=headers)
    if accept is None:
        del request.headers["accept"]
    answer = await api.http.send(request)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)

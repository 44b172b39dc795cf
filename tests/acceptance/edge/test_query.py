"""Query parameters, and `Accept`: what is used is what was checked, and what is wrong is named."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.support import Frame, Gateway, Writer, gateway, request_body

PAGE = {"accept": "application/json"}


@pytest.fixture(scope="module")
async def busy(redis: EmbeddedRedis, broker: Broker) -> AsyncGenerator[Gateway, None]:
    """A gateway whose tenant has a hundred and more generations."""
    limits = {"TOKENCAST_TENANT_QUEUED": "0", "TOKENCAST_TENANT_PER_MINUTE": "0"}
    async with gateway(redis.url, **limits) as api:
        for _ in range(105):
            await broker.enqueue(request_body())
        yield api


@pytest.fixture(scope="module")
async def told(api: Gateway, broker: Broker) -> Writer:
    """A generation of four chunks that has ended."""
    writer = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    await writer.append("one ", "two ", "three ", "four")
    await writer.finish()
    return writer


NO_LIMIT = [
    "0", "101", "0000000999", "000000001" + "0" * 30, "1" * 30, "010", "-1", "+1", "1.0", "1e1", "x", "%200", "%31%00",
    "%D9%A3", "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("limit", NO_LIMIT, ids=lambda text: text[:12])
async def test_a_limit_is_a_whole_number_within_its_bounds(busy: Gateway, told: Writer, limit: str) -> None:
    refused = [await busy.http.get(f"/v1/generations?limit={limit}")]
    if limit != "101":
        refused.append(await busy.http.get(f"/v1/generations/{told.gid}/events?limit={limit}", headers=PAGE))
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


async def test_as_many_are_listed_as_the_limit_says(busy: Gateway, told: Writer) -> None:
    for limit in (1, 7, 100):
        page = (await busy.http.get(f"/v1/generations?limit={limit}")).json()
        assert (len(page["data"]), page["has_more"]) == (limit, True)
    events = (await busy.http.get(f"/v1/generations/{told.gid}/events?limit=1000", headers=PAGE)).json()["data"]
    assert len(events) == 7
    assert len((await busy.http.get("/v1/generations?limit=&status=&after=")).json()["data"]) == 20


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
        ("/v1/generations/{id}?utm=x", "utm"),
        ("/v1/generations/{id}/events?from=1", "from"),
        ("/v1/activity?status=queued", "status"),
        ("/v1/events?generation={id}&_=1763790000", "_"),
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
async def test_what_is_unknown_or_given_twice_is_named(api: Gateway, told: Writer, query: str, param: str) -> None:
    answer = await api.http.get(query.replace("{id}", told.gid))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# --- where a reader goes on ----------------------------------------------------------------------------------


def ids(frames: list[Frame]) -> list[str | None]:
    return [frame.id for frame in frames]


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID", "Last-Event-ID"])
async def test_a_polyfill_s_reader_goes_on_after_what_it_had(api: Gateway, told: Writer, name: str) -> None:
    """Where no header can be sent, the last id stands in the query; what reconnects also sends its first URL again."""
    everything = await api.events(told.gid)
    third, fifth = everything[2].id, everything[4].id
    rest = ids(everything[5:])
    assert len(rest) == 2
    assert ids(await api.events(told.gid, f"?{name}={fifth}")) == rest
    assert ids(await api.events(told.gid, f"?after={third}&{name}={fifth}")) == rest
    assert ids(await api.events(told.gid, f"?after=latest&{name}={fifth}")) == rest
    assert ids(await api.events(told.gid, f"?{name}={third}", **{"last-event-id": str(fifth)})) == rest
    assert ids(await api.events(told.gid, f"?{name}=")) == ids(everything)
    unknown = await api.events(told.gid, f"?{name}=nonsense")
    assert (unknown[0].event, ids(unknown[1:])) == ("reset", ids(everything))
    page = (await api.http.get(f"/v1/generations/{told.gid}/events?{name}={fifth}", headers=PAGE)).json()
    assert [event["id"] for event in page["data"]] == rest


async def test_of_several_generations_too(api: Gateway, told: Writer, broker: Broker) -> None:
    other = await Writer(broker.store.redis, (await api.create())["id"]).claim()
    await other.append("one")
    await other.finish()
    path = f"/v1/events?generation={told.gid}&generation={other.gid}"
    frames = [frame async for frame in api.stream("GET", path)]
    last = [frame.id for frame in frames if frame.id][-1]
    assert [frame async for frame in api.stream("GET", f"{path}&lastEventId={last}")] == []


async def test_of_what_happens_to_all_of_them_too(api: Gateway, told: Writer) -> None:
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
async def test_events_come_in_the_form_that_is_accepted(
    api: Gateway, told: Writer, accept: str | None, kind: str
) -> None:
    headers = {} if accept is None else {"accept": accept}
    request = api.http.build_request("GET", f"/v1/generations/{told.gid}/events", headers=headers)
    if accept is None:
        del request.headers["accept"]
    answer = await api.http.send(request)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)

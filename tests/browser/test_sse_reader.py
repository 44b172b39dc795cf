"""The dashboard's reader of server-sent events: parsing and reconnecting."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from typing import Any

import pytest
from playwright.async_api import Page, Route

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open, Watched
from tests.browser.dashboard import UNREACHABLE, start_generation
from tests.support import Gateway, gateway, wait_until

pytestmark = pytest.mark.browser

PARSE = """async (pieces) => {
    const { Parser } = await import("/static/data/sse.js");
    const parser = new Parser();
    return [pieces.flatMap((piece) => parser.push(piece)), parser.id, parser.retry];
}"""
READ = """async (path) => {
    const { EventStream } = await import("/static/data/sse.js");
    window.messages = [];
    window.states = [];
    window.stream = new EventStream({
        url: () => path,
        headers: () => ({ "x-test": "yes" }),
        onmessage: (message) => messages.push(message),
        onstate: (state, refusal) => states.push(refusal ? [state, refusal.status, refusal.message] : state),
    });
}"""

STREAM = (
    ": hello\n\nid: 1\nevent: chunk\ndata: {}\n\n"
    "data\ndata:two\rdata:  three\r\n\r\n"  # every kind of line ending; one space is removed, not two
    "event: nothing\n\nid: bad\0id\ndata: x\u2028y\n\n"
    "retry: 250\nretry: soon\nunknown: field\nid: 2\n\ndata: Grüße 🦀\n\nid\ndata: none\n\ndata: unfinished\n"
)
EVENTS = [
    {"type": "chunk", "data": "{}", "id": "1"},
    {"type": "message", "data": "\ntwo\n three", "id": "1"},
    {"type": "message", "data": "x\u2028y", "id": "1"},
    {"type": "message", "data": "Grüße 🦀", "id": "2"},
    {"type": "message", "data": "none", "id": ""},
]


async def empty_page(visit: Open, api: Gateway) -> Watched:
    """An empty page of the gateway's origin."""
    return await visit(api, "/healthz")


async def test_events_are_parsed_as_in_the_standard_for_any_splitting(api: Gateway, visit: Open) -> None:
    page = (await empty_page(visit, api)).page
    assert await page.evaluate(PARSE, [STREAM]) == [EVENTS, "", 250]
    assert await page.evaluate(PARSE, list(STREAM)) == [EVENTS, "", 250]
    shuffled = random.Random(7)
    for _ in range(20):
        places = sorted(shuffled.sample(range(len(STREAM)), 5))
        pieces = [STREAM[a:b] for a, b in zip([0, *places], [*places, len(STREAM)], strict=True)]
        assert await page.evaluate(PARSE, ["", *pieces, ""]) == [EVENTS, "", 250], places


async def test_the_reader_gives_the_same_events_as_an_eventsource(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Grüße 🦀\u2028", '"quoted"\r\n')
    await writer.finish()
    page = (await empty_page(visit, api)).page
    await page.evaluate(
        """(path) => {
            window.others = [];
            const source = new EventSource(path);
            const take = ({ type, data, lastEventId }) => others.push({ type, data, id: lastEventId });
            for (const name of ["created", "started", "chunk", "completed"]) source.addEventListener(name, take);
            source.addEventListener("completed", () => source.close());
        }""",
        f"/v1/generations/{writer.gid}/events",
    )
    await page.evaluate(READ, f"/v1/generations/{writer.gid}/events")
    await page.wait_for_function("states.at(-1) === 'ended' && others.length === 5")
    assert await page.evaluate("messages") == await page.evaluate("others")


async def test_the_reader_reconnects_with_its_last_id_and_its_headers(
    redis: EmbeddedRedis, broker: Broker, visit: Open, port: int
) -> None:
    async with gateway(redis.url, PORT=str(port)) as first:
        writer = await start_generation(first, broker)
        await writer.append("one", "two")
        visitor = await empty_page(visit, first)
        visitor.allowed_errors = UNREACHABLE
        page = visitor.page
        await page.evaluate(READ, f"/v1/generations/{writer.gid}/events")
        await page.wait_for_function("messages.length === 4")
        first.process.send(signal.SIGKILL)
        await first.process.wait()
        await page.wait_for_function("states.at(-1) === 'reconnecting'")
    await writer.append("three")
    async with gateway(redis.url, PORT=str(port)):
        await page.wait_for_function("messages.length === 5")
        await writer.finish()
        await page.wait_for_function("states.at(-1) === 'ended'")
    ids = await page.evaluate("messages.map(({ id }) => id)")
    assert ids == ["0-1", *(f"{writer.attempt}-{seq}" for seq in range(5))]
    resumed = [await request.all_headers() for request in visitor.streams(writer.gid)[1:]]
    assert {headers["x-test"] for headers in resumed} == {"yes"}
    ids = [headers["last-event-id"] for headers in resumed]
    assert [ids[0], ids[-1]] == [f"{writer.attempt}-2", f"{writer.attempt}-4"]


async def serve_responses(page: Page, *answers: dict[str, Any]) -> list[str]:
    """Answer the reader's requests with these responses, in turn; return the Last-Event-ID of each request."""
    cursors: list[str] = []

    async def answer(route: Route) -> None:
        cursors.append(route.request.headers.get("last-event-id", ""))
        await route.fulfill(**answers[min(len(cursors), len(answers)) - 1])

    await page.route("**/stream", answer)
    await page.evaluate(READ, "/stream")
    return cursors


EVENT = {"content_type": "text/event-stream", "body": "retry: 10\nid: 7\ndata: x\n\n"}


async def test_a_temporary_failure_is_retried(api: Gateway, visit: Open) -> None:
    """A proxy's error, an HTML page instead of a stream, a stream that just ends."""
    visitor = await empty_page(visit, api)
    visitor.allowed_errors = "status of 50[23]"
    cursors = await serve_responses(
        visitor.page,
        {"status": 502, "content_type": "text/html", "body": "<h1>Bad gateway</h1>"},
        {"status": 200, "content_type": "text/html", "body": "data: not this\n\n"},
        EVENT,
        {"status": 503, "body": ""},
        {"status": 204, "body": ""},
    )
    await visitor.page.wait_for_function("states.at(-1) === 'ended'")
    assert cursors == ["", "", "", "7", "7"]
    assert await visitor.page.evaluate("messages") == [{"type": "message", "data": "x", "id": "7"}]


@pytest.mark.parametrize("status", [400, 401, 404, 410])
async def test_a_permanent_refusal_is_not_retried(api: Gateway, visit: Open, status: int) -> None:
    visitor = await empty_page(visit, api)
    visitor.allowed_errors = f"status of {status}"
    body = json.dumps({"error": {"message": "No."}})
    cursors = await serve_responses(visitor.page, {"status": status, "content_type": "application/json", "body": body})
    await visitor.page.wait_for_function("states.length === 2")
    assert await visitor.page.evaluate("states") == ["connecting", ["refused", status, "No."]]
    assert cursors == [""]


async def test_a_stopped_reader_gets_no_more_events(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    visitor = await empty_page(visit, api)
    page = visitor.page
    await page.evaluate(READ, f"/v1/generations/{writer.gid}/events")
    await page.wait_for_function("messages.length === 2")
    async with page.expect_event("requestfailed"):
        await page.evaluate("stream.stop()")

    async def has_left() -> bool:
        overview = (await api.http.get("/v1/overview")).json()
        return writer.gid not in overview["subscribers"]["generations"]

    await asyncio.gather(wait_until(has_left), writer.append("unheard"))
    assert await page.evaluate("[messages.length, states.at(-1)]") == [2, "live"]
    assert len(visitor.streams(writer.gid)) == 1

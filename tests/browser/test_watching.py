"""The documented pages that follow many generations over one connection, in a browser."""

from __future__ import annotations

import signal

import pytest
from playwright.async_api import Page, Route, expect

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open, Watched
from tests.support import ROOT, Gateway, Writer, gateway

pytestmark = pytest.mark.browser

EXAMPLE = (ROOT / "docs/dashboard.html").read_text("utf-8")

CONNECTION_LOST = "ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)"

# Ten generations on one EventSource. Events that are repeated after its last id are dropped by comparing cursors.
MANY = """
(ids) => {
    window.texts = Object.fromEntries(ids.map((id) => [id, ""]));
    window.taken = 0;
    const cursors = {};
    const after = (a, b) => {
        const [x, y] = [a, b].map((cursor) => cursor.split("-").map(Number));
        return x[0] - y[0] || x[1] - y[1];
    };
    window.source = new EventSource("/v1/events?" + ids.map((id) => `generation=${id}`).join("&"));
    source.addEventListener("chunk", (event) => {
        const { generation, cursor, data } = JSON.parse(event.data);
        if (after(cursor, cursors[generation] ?? "0-0") <= 0) return;
        cursors[generation] = cursor;
        texts[generation] += data.choices[0].delta.content;
        taken += 1;
    });
}
"""


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def open_example(visit: Open, api: Gateway) -> Watched:
    """The page, in the gateway's origin."""
    visitor = await visit(api, "/healthz")

    async def serve(route: Route) -> None:
        await route.fulfill(body=EXAMPLE, content_type="text/html")

    await visitor.page.route(f"{api.url}/dashboard", serve)
    await visitor.page.goto(f"{api.url}/dashboard")
    return visitor


async def expect_row(page: Page, gid: str, *cells: str) -> None:
    await expect(page.locator("tbody tr", has_text=gid).locator("td")).to_have_text([gid, *cells])


async def test_the_documented_page_shows_the_state_of_every_generation(
    redis: EmbeddedRedis, broker: Broker, visit: Open, port: int
) -> None:
    """Those that existed before, new ones, and changes during an interruption of the gateway."""
    async with gateway(redis.url, PORT=str(port)) as api:
        before = await start_generation(api, broker)
        await before.finish()
        visitor = await open_example(visit, api)
        visitor.allowed_errors = CONNECTION_LOST
        await expect_row(visitor.page, before.gid, "m", "completed", "1", "")
        running, deleted = [await start_generation(api, broker) for _ in range(2)]
        await expect_row(visitor.page, running.gid, "m", "in_progress", "1", "")
        await expect_row(visitor.page, deleted.gid, "m", "in_progress", "1", "")
        await api.http.delete(f"/v1/generations/{deleted.gid}")
        await expect(visitor.page.locator("tbody tr")).to_have_count(2)
        api.process.send(signal.SIGKILL)
        await api.process.wait()
    await running.append("word ")
    await running.finish()
    async with gateway(redis.url, PORT=str(port)) as api:
        await expect_row(visitor.page, running.gid, "m", "completed", "1", "")
        await expect(visitor.page.locator("tbody tr")).to_have_count(2)


async def test_ten_generations_on_one_connection(redis: EmbeddedRedis, broker: Broker, visit: Open, port: int) -> None:
    """Also over a kill of the gateway. No event is lost or repeated, and at the end the browser is told to stop."""
    async with gateway(redis.url, PORT=str(port)) as api:
        writers = [await start_generation(api, broker) for _ in range(10)]
        visitor = await visit(api, "/healthz")
        visitor.allowed_errors = CONNECTION_LOST
        page = visitor.page
        await page.evaluate(MANY, [writer.gid for writer in writers])
        for writer in writers:
            await writer.append("one ", "two ")
        await page.wait_for_function("taken === 20")
        api.process.send(signal.SIGKILL)
        await api.process.wait()
    async with gateway(redis.url, PORT=str(port)):
        for writer in writers:
            await writer.append("three")
        await page.wait_for_function("taken === 30")
        for writer in writers:
            await writer.finish()
        await page.wait_for_function("source.readyState === EventSource.CLOSED")
    assert await page.evaluate("texts") == {writer.gid: "one two three" for writer in writers}

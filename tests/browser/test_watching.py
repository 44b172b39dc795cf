"""Pages that watch many generations over one connection, as the documentation has them, in a browser."""

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

LOST = "ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)"

# Ten generations on one EventSource; what has come twice since its last id is dropped by the cursors.
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


async def started(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def example(visit: Open, api: Gateway) -> Watched:
    """The page, under the gateway's own origin."""
    visitor = await visit(api, "/healthz")

    async def serve(route: Route) -> None:
        await route.fulfill(body=EXAMPLE, content_type="text/html")

    await visitor.page.route(f"{api.url}/dashboard", serve)
    await visitor.page.goto(f"{api.url}/dashboard")
    return visitor


async def row(page: Page, gid: str, *cells: str) -> None:
    await expect(page.locator("tbody tr", has_text=gid).locator("td")).to_have_text([gid, *cells])


async def test_the_example_shows_every_generation_as_it_is(
    redis: EmbeddedRedis, broker: Broker, visit: Open, port: int
) -> None:
    """What was before it came, what comes, and what came while the gateway was away."""
    async with gateway(redis.url, PORT=str(port)) as api:
        before = await started(api, broker)
        await before.finish()
        visitor = await example(visit, api)
        visitor.forgives = LOST
        await row(visitor.page, before.gid, "m", "completed", "1", "")
        running, deleted = [await started(api, broker) for _ in range(2)]
        await row(visitor.page, running.gid, "m", "in_progress", "1", "")
        await row(visitor.page, deleted.gid, "m", "in_progress", "1", "")
        await api.http.delete(f"/v1/generations/{deleted.gid}")
        await expect(visitor.page.locator("tbody tr")).to_have_count(2)
        api.process.send(signal.SIGKILL)
        await api.process.wait()
    await running.append("word ")
    await running.finish()
    async with gateway(redis.url, PORT=str(port)) as api:
        await row(visitor.page, running.gid, "m", "completed", "1", "")
        await expect(visitor.page.locator("tbody tr")).to_have_count(2)


async def test_ten_generations_on_one_connection(redis: EmbeddedRedis, broker: Broker, visit: Open, port: int) -> None:
    """Over a gateway that is killed; nothing is missing, nothing comes twice, and in the end the browser is told to
    leave it."""
    async with gateway(redis.url, PORT=str(port)) as api:
        writers = [await started(api, broker) for _ in range(10)]
        visitor = await visit(api, "/healthz")
        visitor.forgives = LOST
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

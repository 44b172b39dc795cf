"""The example of docs/browsers.md, and the plain EventSource below it, in a page without the dashboard."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from broker import Broker
from tests.browser.conftest import Open, Watched
from tests.support import ROOT, Gateway, Writer

pytestmark = pytest.mark.browser


def documented_example() -> str:
    """The ```js block of docs/browsers.md that creates an EventSource; it expects an `id` and an element `output`."""
    text = (ROOT / "docs/browsers.md").read_text("utf-8")
    blocks = re.findall(r"^```js\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return next(block for block in blocks if "new EventSource(" in block)


async def empty_page(visit: Open, api: Gateway) -> Watched:
    """A page of the gateway's origin that contains only an element `output`."""
    visitor = await visit(api, "/healthz")
    await visitor.page.evaluate("document.body.innerHTML = '<pre id=\"output\"></pre>'")
    return visitor


async def run_example(page: Page, gid: str) -> None:
    """Run the example; its EventSource is available as `source`."""
    await page.evaluate(
        "window.EventSource = class extends EventSource { constructor(url) { super(url); window.source = this; } }; 0"
    )
    await page.evaluate(
        f"id => {{ const output = document.querySelector('#output'); {{ {documented_example()} }} }}", gid
    )


async def source_is_closed(page: Page) -> None:
    await page.wait_for_function("source.readyState === EventSource.CLOSED")


async def start_generation(api: Gateway, broker: Broker) -> Writer:
    return await Writer(broker.store.redis, (await api.create())["id"]).claim()


async def test_the_documented_example_shows_the_text_and_closes(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    visitor = await empty_page(visit, api)
    output = visitor.page.locator("#output")
    await run_example(visitor.page, writer.gid)
    await writer.append("Hello", ", ", "<b>wor")
    await expect(output).to_have_text("Hello, <b>wor")
    await writer.append("ld</b>")
    await writer.append_raw(b'{"choices":[{"index":1,"delta":{"content":"another"}}]}', b'{"choices":[],"usage":{}}')
    await writer.append_raw(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    await writer.finish()
    await source_is_closed(visitor.page)
    await expect(output).to_have_text("Hello, <b>world</b>")
    assert len(visitor.streams(writer.gid)) == 1


@pytest.mark.parametrize("how", ["failed", "cancelled", "gone"])
async def test_the_documented_example_closes_at_every_ending(
    api: Gateway, broker: Broker, visit: Open, how: str
) -> None:
    writer = await start_generation(api, broker)
    visitor = await empty_page(visit, api)
    await run_example(visitor.page, writer.gid)
    await writer.append("Half")
    await expect(visitor.page.locator("#output")).to_have_text("Half")
    if how == "failed":
        await writer.finish("failed", b'{"error":{"message":"m","type":"server_error","code":"c"}}')
    elif how == "cancelled":
        await api.http.post(f"/v1/generations/{writer.gid}/cancel")
    else:
        await api.http.delete(f"/v1/generations/{writer.gid}")
    await source_is_closed(visitor.page)
    await expect(visitor.page.locator("#output")).to_have_text("Half")


async def test_the_documented_example_discards_the_text_at_a_reset(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    visitor = await empty_page(visit, api)
    await run_example(visitor.page, writer.gid)
    await writer.append("lost")
    await expect(visitor.page.locator("#output")).to_have_text("lost")
    await broker.store.redis.execute("HSET", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}", "st", "queued", "own", "")
    second = await Writer(broker.store.redis, writer.gid).claim()
    await second.append("kept")
    await expect(visitor.page.locator("#output")).to_have_text("kept")


async def test_an_eventsource_that_does_not_close_is_stopped_by_204(api: Gateway, broker: Broker, visit: Open) -> None:
    """The browser reconnects once after the end, receives 204, and stops."""
    writer = await start_generation(api, broker)
    await writer.append("Hello")
    await writer.finish()
    visitor = await empty_page(visit, api)
    await visitor.page.evaluate("id => { source = new EventSource(`/v1/generations/${id}/events`); }", writer.gid)
    await source_is_closed(visitor.page)
    responses = [await request.response() for request in visitor.streams(writer.gid)]
    assert [response and response.status for response in responses] == [200, 204]
    headers = await visitor.streams(writer.gid)[1].all_headers()
    assert headers["last-event-id"] == f"{writer.attempt}-2"

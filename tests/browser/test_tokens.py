"""A page without an API key: reading with a stream token, and renewing it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

import pytest
from playwright.async_api import expect

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.support import Gateway, Writer, gateway

pytestmark = pytest.mark.browser

BEARER = {"authorization": "Bearer key-anna"}

# Requests a token as the page's own server would and opens the stream with it. When the browser has given up, it
# continues with a new token after its last event. `lives` contains the lifetimes of the tokens in seconds.
PAGE = """
async ([id, lives, headers]) => {
    document.body.innerHTML = '<pre id="output"></pre>';
    window.states = [];
    const open = async (after) => {
        const body = JSON.stringify({ ttl_seconds: lives.shift() });
        const made = await fetch(`/v1/generations/${id}/token`, { method: "POST", headers, body });
        const { events_url } = await made.json();
        const source = new EventSource(events_url + (after && `&after=${after}`));
        source.addEventListener("chunk", (event) => {
            after = event.lastEventId;
            document.querySelector("#output").append(JSON.parse(event.data).choices[0].delta.content);
        });
        source.addEventListener("completed", () => {
            states.push("completed");
            source.close();
        });
        source.addEventListener("error", () => {
            states.push(source.readyState);
            if (source.readyState === EventSource.CLOSED) open(after);
        });
    };
    await open("");
}
"""


@pytest.fixture(scope="module")
async def keyed(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    keys = f"anna:{hashlib.sha256(b'key-anna').hexdigest()}"
    async with gateway(redis.url, TOKENCAST_API_KEYS=keys) as started:
        yield started


async def test_a_page_reads_with_a_token_and_continues_with_the_next_one(
    keyed: Gateway, broker: Broker, visit: Open
) -> None:
    """When the token expires, the browser reconnects once, receives 401, and closes the source. The page notices it and
    loses no event."""
    writer = await Writer(broker.store.redis, (await keyed.create(**BEARER))["id"]).claim()
    await writer.append("One ", "two ")
    visitor = await visit(keyed, "/healthz")
    visitor.allowed_errors = "status of 401"
    await visitor.page.evaluate(PAGE, [writer.gid, [2, 600], BEARER])
    output = visitor.page.locator("#output")
    await expect(output).to_have_text("One two ")
    await visitor.page.wait_for_function("states.length === 2")
    assert await visitor.page.evaluate("states") == [0, 2], "first reconnecting, then closed"
    await writer.append("three")
    await expect(output).to_have_text("One two three")
    await writer.finish()
    await visitor.page.wait_for_function("states.at(-1) === 'completed'")
    responses = [await request.response() for request in visitor.streams(writer.gid)]
    assert [response and response.status for response in responses] == [200, 401, 200]
    assert await output.text_content() == "One two three"


async def test_without_a_token_a_page_is_refused(keyed: Gateway, visit: Open) -> None:
    gid = (await keyed.create(**BEARER))["id"]
    visitor = await visit(keyed, "/healthz")
    visitor.allowed_errors = "status of 401"
    await visitor.page.evaluate("id => { source = new EventSource(`/v1/generations/${id}/events`); }", gid)
    await visitor.page.wait_for_function("source.readyState === EventSource.CLOSED")

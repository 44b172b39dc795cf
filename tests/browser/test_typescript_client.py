"""The TypeScript client in a page of another origin, which reads with stream tokens."""

from __future__ import annotations

import signal

import pytest
from playwright.async_api import expect

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.clients.typescript import bundle as bundled
from tests.browser.conftest import Open
from tests.browser.test_other_origin import ACCESS, BEARER, KEY, site, site_port
from tests.browser.test_watching import CONNECTION_LOST
from tests.support import Writer, gateway

__all__ = ["site", "site_port"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.node]

FOLLOW = """
([baseUrl, id, apiKey]) => {
    window.owner = new Client({ baseUrl, apiKey });
    const reader = new Client({ baseUrl, token: async (id) => (await owner.token(id)).token });
    window.reading = (async () => {
        for await (const event of reader.follow(id)) document.querySelector("#output").append(event.text);
        return (await reader.get(id)).status;
    })();
}
"""
REFUSED = """
async (id) => {
    const error = await owner.get(id).catch((error) => error);
    return [error instanceof NotFound, error.code, error.requestId];
}
"""


@pytest.fixture(scope="module")
def bundle() -> str:
    """The client, as globals of a page."""
    return bundled('import * as all from "./dist/index.js"; Object.assign(window, all);', loader="js")


async def test_a_page_of_another_origin_resumes_after_a_kill_of_the_gateway(
    own_redis: EmbeddedRedis, site: str, visit: Open, port: int
) -> None:
    """Each connection has a token of its own, and errors tell their code and the id of their request."""
    variables = {"TOKENCAST_CORS_ORIGINS": site, **ACCESS["keyed"]}
    async with connect(own_redis.url) as broker:
        async with gateway(own_redis.url, PORT=str(port), **variables) as api:
            writer = await Writer(broker.store.redis, (await api.create(**BEARER))["id"]).claim()
            await writer.append("One ", "two ")
            visitor = await visit(api, site=site)
            visitor.allowed_errors = f"{CONNECTION_LOST}|blocked by CORS policy|status of 404"
            await visitor.page.evaluate(FOLLOW, [api.url, writer.gid, KEY])
            output = visitor.page.locator("#output")
            await expect(output).to_have_text("One two ", use_inner_text=False)
            api.process.send(signal.SIGKILL)
            await api.process.wait()
        await writer.append("three")
        async with gateway(own_redis.url, PORT=str(port), **variables):
            await expect(output).to_have_text("One two three", use_inner_text=False)
            await writer.finish()
            assert await visitor.page.evaluate("reading") == "completed"
            is_not_found, code, request_id = await visitor.page.evaluate(REFUSED, "gen_01kbn2h8v010" + "0" * 22)
    assert (is_not_found, code) == (True, "generation_not_found")
    assert request_id.startswith("req_")
    streams = [request for request in visitor.streams(writer.gid) if request.method == "GET"]
    assert (await streams[-1].all_headers())["last-event-id"] == f"{writer.attempt}-2"
    assert all("token=" in request.url and "authorization" not in request.headers for request in streams)

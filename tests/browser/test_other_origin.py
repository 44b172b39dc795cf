"""Pages of another origin in TOKENCAST_CORS_ORIGINS, with the unmodified OpenAI SDK and an EventSource that can send a
key; with a gateway with API keys, and an open one."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import expect

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import NODE, node
from tests.browser.conftest import Open, Watched
from tests.browser.test_watching import CONNECTION_LOST
from tests.support import Gateway, Writer, clean_environment, gateway, request_body, worker
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

pytestmark = [pytest.mark.browser, pytest.mark.node]

KEY = "key-anna"
BEARER = {"authorization": f"Bearer {KEY}"}
ACCESS = {"open": {}, "keyed": {"TOKENCAST_API_KEYS": f"anna:{hashlib.sha256(KEY.encode()).hexdigest()}"}}
PROMPT = "Explain the GIL in CPython."

LIBRARIES = """
import OpenAI from "openai";
import { EventSourcePolyfill } from "event-source-polyfill";
Object.assign(window, { OpenAI, EventSourcePolyfill });
"""
PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<pre id="output"></pre>
<script src="/page.js"></script>
"""


@pytest.fixture(scope="module")
def bundle() -> str:
    """The libraries, bundled for a page."""
    node()
    done = subprocess.run(
        [NODE / "node_modules/.bin/esbuild", "--bundle", "--format=iife", "--log-level=warning"],
        input=LIBRARIES,
        cwd=NODE,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
async def site_port(bundle: str) -> AsyncGenerator[int, None]:
    """The port of the page's own site. It has two host names, and so two origins."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def script(_: web.Request) -> web.Response:
        return web.Response(text=bundle, content_type="text/javascript")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/page.js", script)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture(scope="module")
def site(site_port: int) -> str:
    """The listed origin. For a browser, it is another site than the gateway's address."""
    return f"http://localhost:{site_port}"


@pytest.fixture(scope="module", params=ACCESS)
def variables(request: pytest.FixtureRequest, site: str) -> dict[str, str]:
    return {"TOKENCAST_CORS_ORIGINS": site, **ACCESS[request.param]}


@pytest.fixture(scope="module")
async def listed_gateway(redis: EmbeddedRedis, sim: str, variables: dict[str, str]) -> AsyncGenerator[Gateway, None]:
    """A gateway that lists the site, and a worker. A chat completion waits for a failing upstream only briefly."""
    async with gateway(redis.url, **variables, TOKENCAST_RETRY_BUDGET="3") as api, worker(redis.url, sim):
        yield api


# Makes a streaming and a plain call with the SDK's default retries; returns their results or errors.
CALL_SDK = """
async ([baseURL, apiKey, body]) => {
    const client = new OpenAI({ baseURL, apiKey, dangerouslyAllowBrowser: true });
    const describe = (error) => ({
        error: { type: error.constructor.name, status: error.status, code: error.code, request: error.requestID },
    });
    const streamed = async () => {
        const { data, response } = await client.chat.completions.create({ ...body, stream: true }).withResponse();
        let text = "";
        for await (const chunk of data) text += chunk.choices[0]?.delta?.content ?? "";
        return { text, generation: response.headers.get("x-generation-id") };
    };
    const whole = async () => {
        const completion = await client.chat.completions.create(body);
        return { text: completion.choices[0].message.content, generation: completion.id };
    };
    return [await streamed().catch(describe), await whole().catch(describe)];
}
"""


async def call_sdk(visitor: Watched, api: Gateway, directive: str, label: str) -> list[dict[str, Any]]:
    body = request_body(f"{PROMPT} [[sim speed=0 {directive}]]", model="sim", metadata={"label": label})
    return await visitor.page.evaluate(CALL_SDK, [f"{api.url}/v1", KEY, body])


async def generations(api: Gateway, label: str) -> list[dict[str, Any]]:
    listed = (await api.http.get("/v1/generations?limit=100", headers=BEARER)).json()["data"]
    return [one for one in listed if one["metadata"].get("label") == label]


async def test_the_unmodified_sdk_streams_and_completes(listed_gateway: Gateway, site: str, visit: Open) -> None:
    visitor = await visit(listed_gateway, site=site)
    answers = await call_sdk(visitor, listed_gateway, "length=40", "fine")
    said = "".join(pieces(seed_of([{"role": "user", "content": PROMPT}]), 40))
    assert [answer.get("text") for answer in answers] == [said, said]
    assert {answer["generation"] for answer in answers} == {
        one["id"] for one in await generations(listed_gateway, "fine")
    }


@pytest.mark.parametrize(("fault", "status", "code"), [("500", 502, "upstream_error"), ("401", 502, "upstream_auth")])
async def test_an_upstream_failure_costs_one_generation(
    listed_gateway: Gateway, site: str, visit: Open, fault: str, status: int, code: str
) -> None:
    """One for each call: the SDK reads the header that forbids a retry, and the error."""
    visitor = await visit(listed_gateway, site=site)
    visitor.allowed_errors = f"status of {status}"
    answers = await call_sdk(visitor, listed_gateway, f"fault={fault}", f"fault-{fault}")
    for answer in answers:
        assert answer["error"]["status"] == status
        assert answer["error"]["code"] == code
        assert answer["error"]["request"].startswith("req_")
    assert len(await generations(listed_gateway, f"fault-{fault}")) == len(answers)


async def test_a_failure_after_text_raises_an_error_in_the_page(
    listed_gateway: Gateway, site: str, visit: Open
) -> None:
    """Both calls report it: the stream after status 200, the plain call with an error status."""
    visitor = await visit(listed_gateway, site=site)
    visitor.allowed_errors = "status of 502"
    answers = await call_sdk(visitor, listed_gateway, "length=20 fault=truncate", "truncated")
    assert [answer["error"]["code"] for answer in answers] == ["upstream_truncated", "upstream_truncated"]
    assert len(await generations(listed_gateway, "truncated")) == len(answers)


async def test_an_unlisted_origin_can_neither_read_nor_create(
    listed_gateway: Gateway, site_port: int, variables: dict[str, str], visit: Open
) -> None:
    """Neither with the SDK, nor with requests without preflight, as a form can send them."""
    visitor = await visit(listed_gateway, site=f"http://127.0.0.1:{site_port}")
    visitor.allowed_errors = "blocked by CORS policy|net::ERR_FAILED|status of (401|403|415)"
    answers = await call_sdk(visitor, listed_gateway, "length=1", "foreign")
    assert [answer["error"]["type"] for answer in answers] == ["APIConnectionError", "APIConnectionError"]
    await visitor.page.evaluate(
        "([url, body]) => fetch(url, { method: 'POST', mode: 'no-cors', body })",
        [f"{listed_gateway.url}/v1/generations", json.dumps(request_body(model="sim", metadata={"label": "foreign"}))],
    )
    assert await generations(listed_gateway, "foreign") == []


FOLLOW = """
([url, key]) => {
    window.events = [];
    window.source = new EventSourcePolyfill(url, { headers: { Authorization: `Bearer ${key}` } });
    for (const type of ["chunk", "reset", "completed"]) {
        source.addEventListener(type, (event) => {
            events.push(event.lastEventId);
            if (type === "completed") source.close();
            if (type !== "chunk") return;
            document.querySelector("#output").append(JSON.parse(event.data).choices[0].delta.content);
        });
    }
}
"""


async def test_an_eventsource_with_a_key_resumes_after_a_lost_connection(
    own_redis: EmbeddedRedis, variables: dict[str, str], site: str, visit: Open, port: int
) -> None:
    """The gateway is killed. The polyfill sends its cursor in the query, because a header would need a permission, and
    receives the missing events once."""
    async with connect(own_redis.url) as broker:
        async with gateway(own_redis.url, PORT=str(port), **variables) as api:
            writer = await Writer(broker.store.redis, (await api.create(**BEARER))["id"]).claim()
            await writer.append("One ", "two ")
            visitor = await visit(api, site=site)
            visitor.allowed_errors = f"{CONNECTION_LOST}|network error|Failed to fetch|blocked by CORS policy"
            await visitor.page.evaluate(FOLLOW, [f"{api.url}/v1/generations/{writer.gid}/events", KEY])
            output = visitor.page.locator("#output")
            await expect(output).to_have_text("One two ", use_inner_text=False)
            api.process.send(signal.SIGKILL)
            await api.process.wait()
        await writer.append("three ")
        async with gateway(own_redis.url, PORT=str(port), **variables):
            await expect(output).to_have_text("One two three ", use_inner_text=False)
            await writer.append("four")
            await writer.finish()
            await visitor.page.wait_for_function("source.readyState === EventSourcePolyfill.CLOSED")
    assert await output.text_content() == "One two three four"
    assert await visitor.page.evaluate("events") == [f"{writer.attempt}-{number}" for number in range(1, 6)]
    asked = [request for request in visitor.streams(writer.gid) if request.method == "GET"]
    assert asked[-1].url.endswith(f"?lastEventId={writer.attempt}-2")
    assert (await asked[-1].all_headers())["authorization"] == f"Bearer {KEY}"

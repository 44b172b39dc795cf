"""Pages of other origins: a listed one can call the gateway; an unlisted one can neither read nor create."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser

from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import NODE, node
from tests.support import Gateway, gateway, request_body, service, upstream_calls, worker

pytestmark = pytest.mark.browser

CALL = """
async ([base, model, prompt]) => {
  const { default: OpenAI } = await import("/node_modules/openai/index.mjs");
  const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "key", dangerouslyAllowBrowser: true });
  const request = { model, messages: [{ role: "user", content: prompt }] };
  try {
    const { data, response } = await client.chat.completions.create(request).withResponse();
    return [response.status, response.headers.get("x-generation-id"), data.choices[0].message.content];
  } catch (error) {
    return [error.status, error.headers?.get("x-generation-id"), error.code];
  }
}
"""


@asynccontextmanager
async def site(directory: Path) -> AsyncGenerator[str, None]:
    """A web server for static files; yields its origin. For pages, localhost and 127.0.0.1 are two sites."""
    async with service("http.server", "0", "--bind", "127.0.0.1", "--directory", str(directory)) as process:
        port = (await process.says(r"port (\d+)"))[1]
        yield f"http://localhost:{port}"


@dataclass(frozen=True)
class Sites:
    """A gateway without keys and a worker, and the origins of two pages: a listed and an unlisted one."""

    api: Gateway
    listed: str
    other: str


@pytest.fixture(scope="module")
async def sites(
    redis: EmbeddedRedis, sim: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Sites, None]:
    async with (
        site(NODE) as listed,
        site(tmp_path_factory.mktemp("empty")) as other,
        gateway(redis.url, TOKENCAST_CORS_ORIGINS=listed) as api,
        worker(redis.url, sim),
    ):
        yield Sites(api, listed, other)


@pytest.mark.node
async def test_an_sdk_in_a_listed_page_sends_each_request_once(browser: Browser, sites: Sites, sim: str) -> None:
    """Also if the upstream fails: the SDK reads the header that forbids a retry."""
    node()
    async with await browser.new_page() as page:
        await page.goto(f"{sites.listed}/package.json")
        fine = await page.evaluate(CALL, [sites.api.url, "sim", "[[sim length=3 speed=0 label=page-fine]]"])
        failed = await page.evaluate(CALL, [sites.api.url, "sim", "[[sim fault=401 label=page-failed]]"])
    assert (fine[0], (await sites.api.get(fine[1]))["text"]) == (200, fine[2])
    assert (failed[0], failed[2]) == (502, "upstream_auth")
    assert (await sites.api.get(failed[1]))["status"] == "failed"
    for label in ("page-fine", "page-failed"):
        assert len(await upstream_calls(sim, label)) == 1


SPEND = """
async ([url, body]) => {
  const seen = [];
  for (const [mode, type] of [["no-cors", "text/plain"], ["cors", "text/plain"], ["cors", "application/json"]]) {
    const sent = { method: "POST", mode, body, headers: { "content-type": type } };
    seen.push(await fetch(url, sent).then((response) => response.type, () => "refused"));
  }
  seen.push(await fetch(url, { mode: "no-cors" }).then((response) => response.type, () => "refused"));
  seen.push(await fetch(url).then((response) => response.type, () => "refused"));
  return seen;
}
"""
SUBMIT = """
([url, body]) => {
  const form = document.createElement("form");
  const [name, value] = body.split("=");
  Object.assign(form, { method: "POST", enctype: "text/plain", action: url });
  form.append(Object.assign(document.createElement("input"), { name, value }));
  document.body.append(form);
  form.submit();
}
"""


async def test_an_unlisted_page_can_neither_create_nor_read(browser: Browser, sites: Sites, sim: str) -> None:
    """Neither with requests without preflight, such as a form whose text is JSON, nor with those that need one."""
    body = json.dumps(request_body("[[sim length=1 label=page-evil]]=", "sim"))
    url = f"{sites.api.url}/v1/generations"
    before = (await sites.api.http.get("/v1/generations")).json()["data"]
    async with await browser.new_page() as page:
        await page.goto(sites.other)
        assert await page.evaluate(SPEND, [url, body]) == ["opaque", "refused", "refused", "opaque", "refused"]
        async with page.expect_navigation() as navigation:
            await page.evaluate(SUBMIT, [url, body])
        answer = await navigation.value
        assert answer is not None
        assert answer.status == 403
        assert (await answer.json())["error"]["code"] == "origin_not_allowed"
    assert (await sites.api.http.get("/v1/generations")).json()["data"] == before
    assert await upstream_calls(sim, "page-evil") == []


async def test_a_host_name_that_resolves_to_the_gateway_is_refused(browser: Browser, sites: Sites) -> None:
    """DNS rebinding: for the browser, the gateway has the same origin as the page."""
    async with await browser.new_page() as page:
        answer = await page.goto(sites.api.url.replace("127.0.0.1", "evil.localhost") + "/v1/generations")
        assert answer is not None
        assert answer.status == 403
        assert "TOKENCAST_ALLOWED_HOSTS" in await answer.text()

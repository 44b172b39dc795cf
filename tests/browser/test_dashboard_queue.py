"""The pages of the queue and of the upstreams, and what operators do there."""

from __future__ import annotations

import hashlib
import re

import pytest
from playwright.async_api import Page, expect

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.support import Gateway, gateway, request_body

pytestmark = pytest.mark.browser


async def paused(api: Gateway) -> list[str]:
    return (await api.http.get("/v1/queue")).json()["paused"]


async def confirm(page: Page, action: str) -> None:
    await page.get_by_role("dialog").get_by_role("button", name=action).click()
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_queue_page_shows_what_waits(visit: Open, own_redis: EmbeddedRedis) -> None:
    """By upstream and priority, and generation by generation: first what starts first."""
    async with gateway(own_redis.url) as api:
        late = (await api.create({**request_body(), "tokencast": {"priority": 5}}))["id"]
        first = (await api.create(request_body(model="sim")))["id"]
        second = (await api.create())["id"]
        scheduled = (await api.create({**request_body(), "tokencast": {"priority": 1, "delay_seconds": 3600}}))["id"]
        page = (await visit(api)).page
        await page.get_by_role("link", name="Queue").click()
        await expect(page).to_have_title("Queue · Tokencast")
        await expect(page.locator("#queue-depth")).to_have_text("4 waiting, 1 of them until a set time")
        levels = page.get_by_role("table", name="What waits, of all tenants").locator("tbody tr")
        await expect(levels).to_have_text(
            [re.compile(rf"^\s*default\s*{one}\s*workers are busy\s*–\s*$") for one in (r"3\s*2", r"5\s*1")]
        )
        rows = page.get_by_role("table", name="Waiting generations").locator("tbody tr")
        expected = [
            rf"{scheduled}\s*–\s*m\s*1\s*scheduled\s*\d+ \w+\s*\S*\d",
            rf"{first}\s*1\s*sim\s*3\s*workers are busy\s*\d+ \w+\s*–",
            rf"{second}\s*2\s*m\s*3\s*workers are busy\s*\d+ \w+\s*–",
            rf"{late}\s*3\s*m\s*5\s*workers are busy\s*\d+ \w+\s*–",
        ]
        await expect(rows).to_have_text([re.compile(rf"^\s*{one}") for one in expected])
        await api.http.post(f"/v1/generations/{first}/cancel")
        await expect(rows).to_have_count(3)
        await rows.nth(1).get_by_role("link").click()
        await expect(page.get_by_role("heading", level=2, name=second)).to_be_visible()
        await page.close()


async def test_the_queue_is_paused_and_resumed_after_a_confirmation(visit: Open, own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api:
        page = (await visit(api, "/#/queue")).page
        await expect(page.get_by_text("Nothing waits.")).to_be_visible()
        button = page.get_by_role("button", name="Pause the queue")
        await button.press("Enter")
        await page.keyboard.press("Escape")
        await expect(button).to_be_focused()
        assert await paused(api) == []
        await button.click()
        await confirm(page, "Pause the queue")
        await expect(page.get_by_text("The whole queue is paused.")).to_be_visible()
        await expect(button).to_be_hidden()
        assert await paused(api) == ["all"]
        await page.get_by_role("button", name="Resume the whole queue").click()
        await confirm(page, "Resume")
        await expect(page.get_by_text("The whole queue is paused.")).to_have_count(0)
        assert await paused(api) == []
        await page.close()


async def test_an_upstream_is_paused_and_its_limits_are_changed(visit: Open, own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api:
        await api.create()
        page = (await visit(api)).page
        await page.get_by_role("link", name="Upstreams").click()
        card = page.get_by_role("article")
        await expect(card.get_by_role("heading", name="default")).to_be_visible()
        await expect(card.locator("[data-field=in_flight]")).to_have_text("0 of 4")
        await expect(card.locator("[data-field=max_concurrency]")).to_have_text("none")
        await expect(card.locator("[data-field=learned_concurrency]")).to_have_text("4")
        await expect(card.locator("[data-field=waiting]")).to_have_text("1")
        await expect(card.locator("[data-field=circuit]")).to_have_text("closed")
        await page.get_by_role("button", name="Pause default").click()
        await confirm(page, "Pause")
        await expect(card.get_by_text("paused", exact=True)).to_be_visible()
        assert await paused(api) == ["upstream default"]
        await page.get_by_role("link", name="Queue").click()
        await page.get_by_role("button", name="Resume upstream default").click()
        await confirm(page, "Resume")
        await expect(page.get_by_text("Paused: upstream default.")).to_have_count(0)
        assert await paused(api) == []
        await page.get_by_role("link", name="Upstreams").click()
        await card.get_by_text("Change limits").press("Enter")
        await card.get_by_label("Concurrency").fill("7")
        await card.get_by_label("Requests per minute").fill("120")
        await card.get_by_label("Requests per minute").press("Enter")
        await expect(card.locator("[data-field=max_concurrency]")).to_have_text("7")
        await expect(card.locator("[data-field=rates]")).to_have_text("120 / none")
        await card.get_by_text("Change limits").click()
        await card.get_by_label("Concurrency").fill("")
        await card.get_by_role("button", name="Save").click()
        await expect(card.locator("[data-field=max_concurrency]")).to_have_text("none")
        [upstream] = (await api.http.get("/v1/upstreams")).json()["data"]
        assert (upstream["max_concurrency"], upstream["requests_per_minute"]) == (None, 120)
        await page.close()


def key_of(tenant: str, key: str, role: str = "") -> str:
    return ":".join(filter(None, [tenant, hashlib.sha256(key.encode()).hexdigest(), role]))


async def test_only_operators_are_shown_buttons(visit: Open, own_redis: EmbeddedRedis) -> None:
    keys = f"{key_of('acme', 'tenant-key')},{key_of('ops', 'operator-key', 'operator')}"
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=keys) as api, connect(own_redis.url) as broker:
        bearer = {"authorization": "Bearer operator-key"}
        await api.http.post("/v1/queue/pause", json={}, headers=bearer)
        await broker.enqueue(request_body(), tenant="acme")
        for key, shown in (("tenant-key", 0), ("operator-key", 1)):
            visitor = await visit(api, "/#/queue", key=key)
            page = visitor.page
            await expect(page.get_by_text("The whole queue is paused.")).to_be_visible()
            await expect(page.get_by_role("table", name="Waiting generations")).to_contain_text("paused")
            await expect(page.get_by_text("(acme)")).to_have_count(shown)
            await expect(page.get_by_role("button", name="Resume the whole queue")).to_have_count(shown)
            await page.get_by_role("link", name="Upstreams").click()
            await expect(page.get_by_role("heading", name="default")).to_be_visible()
            await expect(page.get_by_role("button", name="Pause default")).to_have_count(shown)
            await expect(page.get_by_text("Change limits")).to_be_visible(visible=bool(shown))
            await page.close()

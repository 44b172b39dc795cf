"""Search beyond what is loaded, time ranges, columns and order of the list; prompts in it, on the wall, on a phone."""

from __future__ import annotations

import json
import re

import pytest
from playwright.async_api import expect

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.dashboard import row, start_generation
from tests.browser.test_dashboard_list import expect_rows
from tests.support import gateway, request_body

pytestmark = pytest.mark.browser


async def test_the_gateway_finds_what_is_not_loaded(visit: Open, own_redis: EmbeddedRedis) -> None:
    """By words of its prompt and by its time; the conditions are in the address."""
    async with gateway(own_redis.url) as api:
        needle = (await api.create(request_body("Where is the needle?\nIn a haystack.")))["id"]
        bodies = [request_body(f"Straw {number}") for number in range(120)]
        await api.http.post("/v1/generations/batch", json={"generations": bodies})
        page = (await visit(api)).page
        await expect(page.locator("#list-count")).to_have_text("100 shown")
        await expect(row(page, needle)).to_have_count(0)
        await page.get_by_role("searchbox", name="Search").fill("NEEDLE where")
        await expect_rows(page, [needle])
        await expect(row(page, needle).locator("[data-field=prompt]")).to_have_text("Where is the needle?")
        await page.wait_for_url("**/#/?search=NEEDLE+where")
        created = page.get_by_label("Created", exact=True)
        await created.select_option("Last hour")
        await page.wait_for_url("**/#/?search=NEEDLE+where&since=1h")
        await page.reload()
        await expect_rows(page, [needle])
        await expect(created).to_have_value("1h")
        await created.select_option("From … to …")
        await page.get_by_label("Created before").fill("2026-01-02T03:04")
        await expect(page.locator("#list-state")).to_have_text("No generation matches.")
        await page.wait_for_url(re.compile(r"until=2026-01-0\dT\d\d%3A\d\d%3A00\.000Z$"))
        await page.reload()
        await expect(page.get_by_label("Created before")).to_have_value("2026-01-02T03:04")
        await page.goto(f"{api.url}/#/wall/{needle}")
        await expect(page.locator(".tile [data-field=prompt]")).to_have_text("Where is the needle?")
        await page.close()


async def test_columns_and_order_are_chosen(visit: Open, own_redis: EmbeddedRedis) -> None:
    """They are in the address; the columns are also remembered. An order is that of the loaded rows."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        first = (await api.create(request_body("b", model="sim")))["id"]
        writer = await start_generation(api, broker, prompt="c", model="m")
        await writer.append(*"12345")
        error = {"message": "The upstream went away.", "type": "server_error", "code": "upstream_truncated"}
        await writer.finish("failed", json.dumps({"error": error}).encode())
        third = (await api.create(request_body("a", model="gabforge-coder")))["id"]
        page = (await visit(api)).page
        await expect_rows(page, [third, writer.gid, first])
        header = page.get_by_role("columnheader")
        await header.get_by_text("Prompt").click()
        await expect_rows(page, [third, first, writer.gid])
        await expect(page.get_by_role("columnheader", name="Prompt")).to_have_attribute("aria-sort", "ascending")
        await header.get_by_text("Prompt").click()
        await expect_rows(page, [writer.gid, first, third])
        await page.get_by_label("Sort by").select_option("Tokens: highest first")
        await page.wait_for_url("**/#/?sort=-length")
        await expect_rows(page, [writer.gid, third, first])
        await page.get_by_text("Columns", exact=True).click()
        await page.get_by_label("Column Model").uncheck()
        await page.get_by_label("Column Priority").check()
        await page.keyboard.press("Escape")
        await expect(page.get_by_label("Column Priority")).to_be_hidden()
        await expect(page.get_by_role("columnheader", name="Model")).to_be_hidden()
        await expect(row(page, first).locator("[data-field=priority]")).to_have_text("3")
        columns = "status,tenant,prompt,details,priority,age,first,rate,length".replace(",", "%2C")
        await page.wait_for_url(f"**/#/?sort=-length&columns={columns}")
        address = page.url
        await page.evaluate("location.hash = '#/'")
        await expect_rows(page, [third, writer.gid, first])
        await page.wait_for_url(f"**/#/?columns={columns}")
        await page.evaluate("localStorage.clear()")
        await page.goto(address)
        await page.reload()
        await expect_rows(page, [writer.gid, third, first])
        await expect(page.get_by_role("columnheader", name="Priority")).to_be_visible()
        await page.set_viewport_size({"width": 390, "height": 700})
        failed = row(page, writer.gid)
        for name, said in (("code", "upstream_truncated"), ("message", "The upstream went away."), ("prompt", "c")):
            await expect(failed.locator(f"[data-field={name}]")).to_have_text(said)
            await expect(failed.locator(f"[data-field={name}]")).to_be_visible()
        await expect(row(page, first).locator("[data-field=reason]")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.close()

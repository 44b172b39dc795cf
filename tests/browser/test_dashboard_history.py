"""The pages of the history and of the workers, and the subscribers of a generation."""

from __future__ import annotations

import json
import re

import pytest
from playwright.async_api import expect

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.history.recorder import Series
from broker.queue.quotas import OPEN_TENANT
from broker.store import keys
from tests.browser.conftest import Open
from tests.browser.dashboard import announce_worker, start_generation
from tests.support import gateway

pytestmark = pytest.mark.browser

M, SIM = Series(OPEN_TENANT, "m", "one"), Series(OPEN_TENANT, "sim", "two")
ERROR = {"error": {"message": "It stopped.", "type": "server_error", "code": "upstream_truncated"}}


async def test_the_last_hour(visit: Open, own_redis: EmbeddedRedis) -> None:
    """Totals, charts and a table of the same figures; filters in the address; errors with a sample and their list."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        writer = await start_generation(api, broker)
        await writer.finish("failed", json.dumps(ERROR).encode())
        history = broker.history
        for _ in range(4):
            history.created(OPEN_TENANT, "sim")
            history.first_token(SIM, 0.5)
            history.completed(SIM)
        history.tokens(SIM, 12_000)
        history.failed(M, "upstream_truncated", writer.gid)
        history.returned(M, "upstream_truncated", writer.gid)
        await history.flush()

        visitor = await visit(api)
        page = visitor.page
        await page.get_by_role("link", name="History").click()
        await expect(page).to_have_title("History · Tokencast")
        await expect(page.locator("#history-completed")).to_have_text("4")
        await expect(page.locator("#history-failed")).to_have_text("1")
        await expect(page.locator("#history-first")).to_have_text(re.compile(r"^(4|5)\d\d ms / (4|5)\d\d ms$"))
        charts = page.locator("#history-charts").get_by_role("img")
        await expect(charts).to_have_count(4)
        await expect(charts.first).to_have_attribute("aria-label", re.compile(r"over 60 minutes\. created: at most \d"))
        errors = page.get_by_role("table", name="Errors in this time").locator("tbody tr")
        await expect(errors).to_have_text(re.compile(r"upstream_truncated\s*m\s*one\s*1\s*1\s*\d+ \w+ ago"))

        await page.get_by_text("Figures as a table").click()
        await expect(page.locator("#history-rows tr")).to_have_count(60)
        history.failed(M, "timeout", writer.gid)
        await history.flush()
        await expect(errors).to_have_count(2)

        await page.get_by_label("Model of the history").select_option("sim")
        await expect(page.locator("#history-failed")).to_have_text("0")
        await page.get_by_label("Time range").select_option("15")
        await expect(page.locator("#history-rows tr")).to_have_count(15)
        assert page.url.endswith("#/history?minutes=15&model=sim")
        await page.reload()
        await expect(page.get_by_label("Model of the history")).to_have_value("sim")
        await expect(page.locator("#history-completed")).to_have_text("4")
        await expect(page.get_by_text("No errors in this time.")).to_be_visible()
        await page.get_by_label("Model of the history").select_option("")

        await page.get_by_role("link", name="List upstream_truncated of m, one").click()
        assert page.url.endswith("#/?status=failed&model=m&code=upstream_truncated&upstream=one")
        await page.go_back()
        await page.get_by_role("link", name=f"Sample …{writer.gid[-6:]}").first.click()
        await expect(page.get_by_role("heading", level=2, name=writer.gid)).to_be_visible()
        await page.get_by_role("article").get_by_text("Subscribers", exact=True).click()
        await expect(page.get_by_text("Nobody follows it.")).to_be_visible()
        running = await start_generation(api, broker)
        await page.goto(f"{api.url}/#/{running.gid}")
        await page.get_by_role("article").get_by_text("Subscribers", exact=True).click()
        await expect(page.get_by_text("1 open stream.")).to_be_visible()
        streams = page.get_by_role("table", name="Subscribers").locator("tbody tr")
        await expect(streams).to_have_text(re.compile(r"^\w+\s*up to date\s*\d+ s\s*\S+$"))
        await page.close()


async def test_the_workers(visit: Open, own_redis: EmbeddedRedis) -> None:
    """A worker with a generation that drains, one of an older version, and one that was lost."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        redis, gid = broker.queue.redis, (await api.create())["id"]
        now = int(await broker.history.clock.now() * 1000)
        await announce_worker(broker, "new", gid)
        await announce_worker(broker, "old")
        await redis.execute("ZADD", keys.WORKERS, now - 120_000, "lost")

        page = (await visit(api)).page
        await page.get_by_role("link", name="Workers").click()
        await expect(page.locator("#workers-summary")).to_have_text("2 of 18 slots busy")
        cards = page.locator("#worker-cards article")
        await expect(cards).to_have_count(3)
        new, old, lost = cards.nth(0), cards.nth(1), cards.nth(2)
        await expect(new).to_contain_text(
            re.compile(r"host-new.*0\.2\.0.*one, two.*m, one, anna, for 1 min", re.DOTALL)
        )
        await expect(new.locator("[data-field=started]")).to_have_text("1 h")
        await expect(old.locator("[data-field=upstreams]")).to_have_text("–")
        await expect(old.get_by_role("button")).to_have_count(0)
        await expect(lost).to_contain_text("It stopped unexpectedly, 2 min ago.")
        await page.get_by_role("button", name="Drain new").click()
        await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
        await expect(new.locator(".status")).to_have_text("draining")
        await expect(page.get_by_role("button", name="Drain new")).to_be_hidden()
        assert await redis.execute("EXISTS", keys.drain("new")) == 1
        await new.get_by_role("link", name=f"…{gid[-6:]}").click()
        await expect(page.get_by_role("heading", level=2, name=gid)).to_be_visible()
        await page.close()

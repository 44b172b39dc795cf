"""What a waiting generation waits for, and until when: on its page and in the list."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import pytest
from playwright.async_api import expect

from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.dashboard import field, row
from tests.support import Gateway, gateway, request_body, upstream_sim, worker

pytestmark = pytest.mark.browser

BUSY = {"outage": True, "outage_status": 429, "outage_retry_after": 600}
TIME = r"\d\d:\d\d:\d\d"


@asynccontextmanager
async def busy_upstream(redis: EmbeddedRedis) -> AsyncGenerator[tuple[Gateway, str], None]:
    """A gateway and a worker with the upstream `gabforge`, which answers 429; and the URL of its quota."""
    async with upstream_sim("--quota", json.dumps(BUSY)) as sim:
        upstreams = [{"name": "gabforge", "base_url": sim, "api_key_env": "SIM_KEY", "models": ["sim"]}]
        settings = {"TOKENCAST_UPSTREAMS": json.dumps(upstreams), "SIM_KEY": "any"}
        async with gateway(redis.url, **settings) as api, worker(redis.url, sim, **settings):
            yield api, f"{sim.removesuffix('/v1')}/sim/quota"


async def test_a_page_says_what_its_generation_waits_for(visit: Open, own_redis: EmbeddedRedis) -> None:
    """From the 429 of its upstream to its end, and another one in a pause of the queue."""
    async with busy_upstream(own_redis) as (api, quota):
        gid = (await api.create(request_body(model="sim")))["id"]
        page = (await visit(api, f"/#/{gid}", timezone_id="UTC", locale="de-DE")).page
        said = rf"^Waits for the upstream gabforge, which refused calls \(429 or 503\); next try at (.*, )?{TIME}\.$"
        await expect(field(page, "waiting")).to_have_text(re.compile(said))
        await expect(field(page, "status")).to_have_text("queued")
        mark = page.get_by_role("list", name="Timeline").get_by_role("button", name="waiting (upstream busy)")
        await expect(mark).to_be_visible()
        await page.get_by_role("link", name="Generations").click()
        reason = row(page, gid).locator("[data-field=reason]")
        await expect(reason).to_have_text(re.compile(rf"^upstream busy \(gabforge\) until (.*, )?{TIME}$"))
        await api.http.post("/v1/queue/pause", json={})
        await expect(reason).to_have_text("paused")
        await page.goto(f"{api.url}/#/{gid}")
        await expect(field(page, "waiting")).to_have_text("Waits because the queue is paused.")
        async with httpx2.AsyncClient() as http:
            await http.put(quota, json={})
        await page.close()


async def test_a_waiting_generation_shows_its_position(visit: Open, own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api:
        first, second, third = [(await api.create())["id"] for _ in range(3)]
        page = (await visit(api, f"/#/{third}")).page
        await expect(field(page, "waiting")).to_have_text("Waits for a free worker; position 3.")
        await api.http.post(f"/v1/generations/{first}/cancel")
        await expect(field(page, "waiting")).to_have_text("Waits for a free worker; position 2.")
        await page.get_by_role("link", name="Generations").click()
        await expect(row(page, second).locator("[data-field=reason]")).to_have_text("workers are busy, position 1")
        scheduled = await api.create({**request_body(), "tokencast": {"delay_seconds": 3600}})
        await expect(row(page, scheduled["id"]).locator("[data-field=reason]")).to_have_text(
            re.compile("^scheduled until ")
        )
        await page.goto(f"{api.url}/#/{scheduled['id']}")
        await expect(field(page, "waiting")).to_have_text(re.compile(r"^Scheduled for .+\.$"))

        await api.http.post(f"/v1/generations/{second}/cancel")
        await page.set_viewport_size({"width": 375, "height": 700})
        await page.get_by_role("link", name="Generations").click()
        await expect(row(page, third).locator("[data-field=reason]")).to_have_text("workers are busy, position 1")
        await expect(row(page, third).locator("[data-field=reason]")).to_be_visible()
        await page.close()

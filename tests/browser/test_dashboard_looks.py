"""Accessibility, with axe on every view in both themes; and the README's pictures, on demand."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.openai.sdk import NODE, node
from tests.browser.conftest import Open
from tests.browser.dashboard import announce_worker, delta, expect_text, field, part, row, start_generation
from tests.support import ROOT, Gateway, Writer, gateway, request_body, tell_waiting, upstream_sim, wait_until, worker

pytestmark = pytest.mark.browser

PICTURES = os.environ.get("TOKENCAST_PICTURES") == "1"


async def violations(page: Page) -> list[Any]:
    """The violations that axe finds: rule, description and elements."""
    await page.evaluate((NODE / "node_modules/axe-core/axe.min.js").read_text("utf-8"))
    found = (await page.evaluate("axe.run()"))["violations"]
    return [(one["id"], one["help"], [place["html"][:120] for place in one["nodes"]]) for one in found]


@pytest.mark.node
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_no_violation(api: Gateway, broker: Broker, visit: Open, theme: str) -> None:
    node()
    gids: list[str] = []
    for ending in ("", "failed", "completed", "cancelled"):
        gid = (await api.create(request_body(metadata={"order": "17"})))["id"]
        await tell_waiting(broker.store.redis, gid, "upstream_busy", 1763812800)
        writer = await Writer(broker.store.redis, gid).claim()
        gids.append(writer.gid)
        await writer.append_raw(delta(content="Some text.\n" * 100, reasoning="Let me think."))
        if ending == "failed":
            error = {"error": {"message": "It stopped.", "type": "server_error", "code": "upstream_truncated"}}
            await writer.finish("failed", json.dumps(error).encode())
        elif ending == "cancelled":
            await api.http.post(f"/v1/generations/{writer.gid}/cancel")
        elif ending:
            await writer.finish()
    await api.create()
    page = (await visit(api, color_scheme=theme)).page
    await expect(row(page, gids[3])).to_contain_text("cancelled")
    await page.get_by_label("Created", exact=True).select_option("From … to …")
    await page.get_by_text("Columns", exact=True).click()
    assert await violations(page) == []
    await page.get_by_role("button", name="Keyboard shortcuts").click()
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    for gid in gids:
        await page.goto(f"{api.url}/#/{gid}")
        await expect_text(part(page, "Reasoning"), "Let me think.")
        await page.get_by_text("Raw events", exact=True).click()
        assert await violations(page) == [], gid
    await page.goto(f"{api.url}/#/wall/{','.join(gids)}")
    await expect(page.locator(".tile .status")).to_have_text(["in progress", "failed", "completed", "cancelled"])
    assert await violations(page) == []


@pytest.mark.node
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_no_violation_in_the_pages_of_the_queue(
    visit: Open, own_redis: EmbeddedRedis, theme: str
) -> None:
    """On a screen and on a phone, with a pause, a selection and an open dialog; and nothing is wider than the phone."""
    node()
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        writer = await start_generation(api, broker)
        error = {"error": {"message": "It stopped.", "type": "server_error", "code": "upstream_truncated"}}
        await writer.finish("failed", json.dumps(error).encode())
        gid = (await api.create())["id"]
        await api.http.post("/v1/queue/pause", json={"upstream": "default"})
        await announce_worker(broker, "one", gid)
        page = (await visit(api, "/#/?status=queued", color_scheme=theme)).page
        await row(page, gid).get_by_role("checkbox").check()
        await expect(row(page, gid)).to_contain_text("paused")
        for width in (1280, 375):
            await page.set_viewport_size({"width": width, "height": 700})
            assert await violations(page) == []
            for path, what in (
                ("queue", page.get_by_role("button", name="Resume upstream default")),
                ("upstreams", page.get_by_role("button", name="Resume default")),
                ("errors", page.get_by_role("link", name="List upstream_truncated of m, default")),
                ("history", page.get_by_role("img", name="Queue depth")),
                ("workers", page.get_by_role("button", name="Drain one")),
                (gid, page.get_by_text("Waits because")),
            ):
                await page.goto(f"{api.url}/#/{path}")
                await expect(what).to_be_visible()
                assert await violations(page) == [], path
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            await page.goto(f"{api.url}/#/upstreams")
            await page.get_by_text("Change limits").click()
            assert await violations(page) == []
            await page.get_by_role("button", name="Resume default").click()
            await expect(page.get_by_role("dialog")).to_be_visible()
            assert await violations(page) == []
            await page.keyboard.press("Escape")
            await page.goto(f"{api.url}/#/?status=queued")
            await expect(row(page, gid)).to_be_visible()
        await page.close()


@pytest.mark.node
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_no_violation_in_the_key_form(redis: EmbeddedRedis, visit: Open, theme: str) -> None:
    node()
    async with gateway(redis.url, TOKENCAST_API_KEYS="acme:" + "0" * 64) as api:
        visitor = await visit(api, color_scheme=theme)
        visitor.allowed_errors = "status of 401"
        await expect(visitor.page.locator("#key")).to_be_focused()
        assert await violations(visitor.page) == []
        await visitor.page.close()


STORY = (
    "Explain the GIL in CPython. [[sim length={length} speed={speed} seed={seed} delay={delay} reasoning={reasoning}]]"
)


async def test_the_readme_s_pictures_can_be_taken(visit: Open, own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    """Written into docs/ with TOKENCAST_PICTURES=1."""
    pictures = ROOT / "docs" if PICTURES else tmp_path
    samples = 20 if PICTURES else 2
    profile: dict[str, Any] = {"viewport": {"width": 1280, "height": 640}}
    only = {"TOKENCAST_MODELS": "gabforge-coder,sim,sim-*"}
    async with (
        upstream_sim() as sim,
        gateway(own_redis.url, **only) as api,
        worker(own_redis.url, sim, TOKENCAST_SLOTS="16", **only),
    ):

        async def ask(seed: int, length: int, speed: int, reasoning: int = 0, model: str = "gabforge-coder") -> str:
            said = STORY.format(length=length, speed=speed, seed=seed, delay=seed % 3 / 10, reasoning=reasoning)
            body = request_body(said, model=model, metadata={"order": str(4100 + seed)})
            return (await api.create(body))["id"]

        shown = await ask(0, 400, 200, 60)
        for seed in range(1, 7):
            await ask(seed, 50 + seed * 20, 100 + seed * 10)
        failed = await ask(7, 20, 100, model="sim-truncate")
        for gid in (shown, failed):
            await api.ended(gid)
        await api.http.post(f"/v1/generations/{await ask(8, 4000, 40)}/cancel")
        running = [await ask(seed, 9000, 20 + seed % 5 * 12) for seed in range(9, 15)]
        page = (await visit(api, **profile)).page
        spark = row(page, running[-1]).locator("polyline")

        async def drawn() -> bool:
            return len((await spark.get_attribute("points") or "").split()) >= samples

        await wait_until(drawn)
        await page.screenshot(path=pictures / "dashboard-list.png")
        await page.close()
        page = (await visit(api, f"/#/{shown}", **profile, color_scheme="dark")).page
        await expect(field(page, "connection")).to_have_text("ended")
        half = "it => { it.value = it.max * 0.7; it.dispatchEvent(new Event('input')); }"
        await field(page, "scrub").evaluate(half)
        await expect(field(page, "status")).to_have_text("in progress")
        await page.screenshot(path=pictures / "dashboard-replay.png")
        await page.close()
        page = (await visit(api, "/#/wall", **profile)).page
        await expect(page.locator(".tile")).to_have_count(6)
        await expect(page.locator(".tile [data-field=length]")).to_have_text([re.compile(r"\d/s$")] * 6)
        await page.screenshot(path=pictures / "dashboard-wall.png")
        await page.close()
    assert all((pictures / f"dashboard-{name}.png").stat().st_size > 10_000 for name in ("list", "replay", "wall"))

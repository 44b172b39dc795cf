"""Filters in the address, errors in groups, and retrying, cancelling and deleting several generations."""

from __future__ import annotations

import json
import re

import pytest
from playwright.async_api import Page, expect

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.dashboard import field, row, start_generation
from tests.browser.test_dashboard_list import expect_rows, keyed
from tests.browser.test_dashboard_queue import confirm, key_of
from tests.support import Gateway, Writer, gateway, request_body

pytestmark = pytest.mark.browser


async def fail(api: Gateway, broker: Broker, code: str, model: str = "m") -> str:
    writer = await start_generation(api, broker, model=model)
    error = {"message": f"It stopped: {code}.", "type": "server_error", "code": code}
    await writer.finish("failed", json.dumps({"error": error}).encode())
    return writer.gid


async def listed(api: Gateway, query: str = "") -> list[dict[str, object]]:
    return (await api.http.get(f"/v1/generations?limit=100{query}")).json()["data"]


async def test_errors_are_grouped_and_lead_to_the_filtered_list(visit: Open, own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        page = (await visit(api, "/#/errors")).page
        await expect(page.get_by_text("No generation has failed.")).to_be_visible()
        cut = [await fail(api, broker, "upstream_truncated") for _ in range(2)]
        other = await fail(api, broker, "upstream_truncated", model="sim")
        idle = await fail(api, broker, "idle_timeout")
        rows = page.locator("#errors tr")
        await expect(rows).to_have_count(3)
        expected = [r"upstream_truncated\s*m\s*default\s*2\s", r"idle_timeout\s*m\s*default\s*1\s"]
        expected.append(r"upstream_truncated\s*sim\s*default\s*1\s")
        await expect(rows.nth(0)).to_have_text(
            re.compile(rf"^\s*{expected[0]}.*It stopped: upstream_truncated\.", re.S)
        )
        for one, gid in ((expected[1], idle), (expected[2], other)):
            found = rows.filter(has_text=re.compile(one))
            await expect(found.get_by_role("link", name="Sample")).to_have_attribute("href", f"#/{gid}")
        await page.get_by_role("link", name="List upstream_truncated of m, default").click()
        await expect_rows(page, cut[::-1])
        assert page.url.endswith("#/?status=failed&model=m&code=upstream_truncated&upstream=default")
        await page.close()


async def test_filters_are_in_the_address(visit: Open, own_redis: EmbeddedRedis) -> None:
    """They are kept by a reload and on the way back from a generation; an address without them removes them."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        failed = await fail(api, broker, "idle_timeout")
        waiting = (await api.create())["id"]
        page = (await visit(api, "/#/?status=failed&code=idle_timeout&other=1")).page
        await expect_rows(page, [failed])
        await expect(page.get_by_label("Error code")).to_have_value("idle_timeout")
        await page.wait_for_url("**/#/?status=failed&code=idle_timeout")
        await page.get_by_role("searchbox", name="Search").fill("no such")
        await page.wait_for_url("**/#/?status=failed&code=idle_timeout&search=no+such")
        await page.reload()
        await expect(page.get_by_role("searchbox", name="Search")).to_have_value("no such")
        await expect_rows(page, [])
        await page.get_by_role("searchbox", name="Search").fill("")
        await expect_rows(page, [failed])
        await row(page, failed).get_by_role("link").click()
        await expect(page.get_by_role("heading", level=2, name=failed)).to_be_focused()
        await page.keyboard.press("Escape")
        await page.wait_for_url("**/#/?status=failed&code=idle_timeout")
        await expect_rows(page, [failed])
        await page.evaluate("location.hash = '#/'")
        await expect_rows(page, [waiting, failed])
        await expect(page.get_by_label("Status", exact=True)).to_have_value("")
        await page.close()


async def choose(page: Page, *gids: str) -> None:
    for gid in gids:
        await row(page, gid).get_by_role("checkbox").check()


async def test_a_selection_is_retried_and_cancelled(visit: Open, own_redis: EmbeddedRedis) -> None:
    """Each of them if its status allows it, after a confirmation."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        failed = [await fail(api, broker, "idle_timeout") for _ in range(2)]
        waiting = (await api.create())["id"]
        page = (await visit(api)).page
        await choose(page, failed[0], waiting)
        await page.get_by_role("button", name="Retry 2 selected…").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Run 1 generation again")
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await page.get_by_role("button", name="Retry 2 selected…").click()
        await confirm(page, "Retry")
        await expect(page.locator("#bulk-result")).to_have_text("Enqueued again: 1.")
        retries = [one for one in await listed(api) if one["retry_of"]]
        assert [one["retry_of"] for one in retries] == [failed[0]]
        await page.get_by_role("button", name="Cancel 2 selected…").click()
        await confirm(page, "Cancel them")
        await expect(page.locator("#bulk-result")).to_have_text("Cancelled: 1.")
        await expect(row(page, waiting)).to_contain_text("cancelled")
        await page.get_by_role("button", name="Clear the selection").click()
        await expect(page.locator("#bulk")).to_be_hidden()
        await expect(page.get_by_role("link", name="Wall", exact=True)).to_be_visible()
        await page.close()


async def test_all_that_match_the_filters_are_retried_and_cancelled(visit: Open, own_redis: EmbeddedRedis) -> None:
    """The gateway finds them by status and code, after a dry run; with other filters they are retried one by one."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        idle = [await fail(api, broker, "idle_timeout") for _ in range(2)]
        await fail(api, broker, "upstream_truncated")
        other = await fail(api, broker, "idle_timeout", model="sim")
        visitor = await visit(api, "/#/?status=failed&code=idle_timeout")
        page = visitor.page
        await expect_rows(page, [other, *idle[::-1]])
        button = page.get_by_role("button", name="Retry all that match…")
        await button.click()
        await expect(page.get_by_role("dialog")).to_contain_text("Run 3 generations again")
        assert [one for one in await listed(api) if one["retry_of"]] == []
        await confirm(page, "Retry")
        await expect(page.locator("#bulk-result")).to_have_text("Enqueued again: 3.")
        asked = [request.post_data_json for request in visitor.requests if request.url.endswith("/generations/retry")]
        assert [body.get("dry_run") for body in asked] == [True, None]
        await page.get_by_label("Filter by model").select_option("sim")
        await expect_rows(page, [other])
        await button.click()
        await confirm(page, "Retry")
        await expect(page.locator("#bulk-result")).to_have_text("Enqueued again: 1.")
        retried = [one["retry_of"] for one in await listed(api) if one["retry_of"]]
        assert sorted(map(str, retried)) == sorted([*idle, other, other])
        await page.get_by_role("link", name="Queue").click()
        await page.evaluate("location.hash = '#/?status=queued'")
        await page.get_by_role("button", name="Cancel all that match…").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Cancel 4 generations?")
        await confirm(page, "Cancel them")
        await expect(page.locator("#bulk-result")).to_have_text("Cancelled: 4.")
        assert await listed(api, "&status=queued") == []
        await page.close()


async def test_what_matches_or_is_selected_is_deleted(visit: Open, own_redis: EmbeddedRedis) -> None:
    """After a confirmation that states the number; the status summary counts what is left."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        idle = [await fail(api, broker, "idle_timeout") for _ in range(3)]
        other = await fail(api, broker, "upstream_truncated")
        waiting = (await api.create(request_body("Find me")))["id"]
        visitor = await visit(api, "/#/?status=failed&code=idle_timeout")
        page = visitor.page
        await expect_rows(page, idle[::-1])
        await page.get_by_role("button", name="Delete all that match…").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Delete 3 generations permanently?")
        assert len(await listed(api)) == 5
        await confirm(page, "Delete permanently")
        await expect(page.locator("#bulk-result")).to_have_text("Deleted: 3.")
        await expect_rows(page, [])
        await expect(page.locator("#count-failed")).to_have_text("1")
        await page.evaluate("location.hash = '#/?search=find+me'")
        await expect_rows(page, [waiting])
        await choose(page, waiting)
        await page.evaluate("location.hash = '#/?search=nothing'")
        await expect_rows(page, [])
        await page.get_by_role("button", name="Delete 1 selected…").click()
        await expect(page.get_by_role("dialog")).to_contain_text("1 of them is not shown now.")
        await confirm(page, "Delete permanently")
        await expect(page.locator("#bulk-result")).to_have_text("Deleted: 1.")
        await expect(page.locator("#count-queued")).to_have_text("0")
        await expect(page.get_by_role("link", name="Wall", exact=True)).to_be_visible()
        assert [one["id"] for one in await listed(api)] == [other]
        await page.close()


async def test_an_operator_sees_and_changes_all_tenants(visit: Open, own_redis: EmbeddedRedis) -> None:
    """With a column and a filter of tenants."""
    keys = ",".join(key_of(name, name, role) for name, role in (("acme", ""), ("ben", ""), ("ops", "operator")))
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=keys) as api, connect(own_redis.url) as broker:
        gid = (await api.create(None, authorization="Bearer acme"))["id"]
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.finish(
            "failed", b'{"error": {"message": "It stopped.", "type": "server_error", "code": "timeout"}}'
        )
        visitor = await visit(api, "/#/?status=failed&code=timeout", key="ops")
        page = visitor.page
        await expect(page.locator("#caller")).to_have_text("ops, operator")
        await expect_rows(page, [gid])
        await page.get_by_role("button", name="Retry all that match…").click()
        await confirm(page, "Retry")
        await expect(page.locator("#bulk-result")).to_have_text("Enqueued again: 1.")
        answer = await api.http.get("/v1/generations?status=queued", headers={"authorization": "Bearer acme"})
        assert [one["retry_of"] for one in answer.json()["data"]] == [gid]
        of_ben = (await api.create(None, authorization="Bearer ben"))["id"]
        await page.evaluate("location.hash = '#/?status=queued'")
        await expect(row(page, of_ben).locator("[data-field=tenant]")).to_have_text("ben")
        await expect(page.get_by_role("columnheader", name="Tenant")).to_be_visible()
        await expect(page.locator("#count-queued")).to_have_text("2")
        await page.get_by_label("Tenant", exact=True).select_option("ben")
        await expect_rows(page, [of_ben])
        await expect(page.locator("#count-queued")).to_have_text("1")
        await page.wait_for_url("**/#/?status=queued&tenant=ben")
        await page.get_by_role("button", name="Cancel all that match…").click()
        await confirm(page, "Cancel them")
        await expect(page.locator("#bulk-result")).to_have_text("Cancelled: 1.")
        last = visitor.requests_to("/v1/generations/cancel")[-1]
        assert last.post_data_json == {"status": "queued", "tenant": "ben", "limit": 1}
        await page.close()


async def test_a_key_that_only_reads_is_offered_no_change(visit: Open, own_redis: EmbeddedRedis) -> None:
    keys = f"{keyed('writes')['TOKENCAST_API_KEYS']},{keyed('reads')['TOKENCAST_API_KEYS']}:read"
    async with gateway(own_redis.url, TOKENCAST_API_KEYS=keys) as api:
        gid = (await api.create(None, authorization="Bearer writes"))["id"]
        for key, shown in (("writes", True), ("reads", False)):
            page = (await visit(api, "/#/?status=queued", key=key)).page
            await expect(page.locator("#caller")).to_have_text("acme" if shown else "acme, read only")
            await choose(page, gid)
            await expect(page.get_by_role("link", name="Wall (1)")).to_be_visible()
            changes = page.get_by_role("button", name=re.compile("^(Send|(Cancel|Delete|Retry)( |$))"))
            await expect(changes).to_have_count(4 if shown else 0)
            await page.keyboard.press("c")
            await expect(page.get_by_role("dialog")).to_have_count(int(shown))
            await page.keyboard.press("Escape")
            await page.goto(f"{api.url}/#/{gid}")
            await expect(field(page, "status")).to_have_text("queued")
            await expect(changes).to_have_count(3 if shown else 0)
            await page.close()

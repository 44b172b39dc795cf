"""`/docs`: requests sent from the page, with a key, and without any request to another origin."""

from __future__ import annotations

import pytest
from playwright.async_api import Locator, Page, expect

from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.test_dashboard_queue import key_of
from tests.support import Gateway, gateway

pytestmark = [pytest.mark.browser]


async def opened(page: Page, operation: str) -> Locator:
    """An operation's section, open and with its form."""
    section = page.locator(f".opblock[id$=-{operation}]")
    await section.locator(".opblock-summary-control").click()
    await expect(section.get_by_role("button", name="Execute")).to_be_visible()
    return section


def shown(section: Locator) -> Locator:
    """The body of the response to the request that was sent."""
    return section.locator(".live-responses-table .response .highlight-code")


async def test_requests_can_be_sent_from_the_documentation(visit: Open, redis: EmbeddedRedis, running: Gateway) -> None:
    async with gateway(redis.url, TOKENCAST_API_KEYS=key_of("acme", "right-key")) as api:
        visitor = await visit(api, "/docs#/Generations/createGeneration", key="right-key", color_scheme="dark")
        page = visitor.page
        create = page.locator(".opblock[id$=-createGeneration]")  # which the address has opened
        await create.get_by_role("button", name="Execute").click()
        await expect(shown(create)).to_contain_text('"object": "generation"')

        follow = await opened(page, "followGeneration")  # the id is that of the new generation
        await follow.get_by_role("button", name="Execute").click()
        await expect(shown(follow)).to_contain_text("event: completed")
        await expect(follow.locator(".live-responses-table")).to_contain_text("content-type: text/event-stream")

        listed = await opened(page, "listGenerations")  # without filters that the viewer has made up
        await listed.get_by_role("button", name="Execute").click()
        await expect(shown(listed)).to_contain_text('"status": "completed"')

        activity = await opened(page, "watchActivity")  # this stream does not end by itself
        await activity.get_by_role("button", name="Execute").click()
        await expect(shown(activity)).to_contain_text("event: completed")
        await api.wait_for_subscribers(1)
        await activity.get_by_role("button", name="Clear").click()
        await api.wait_for_subscribers(0)
        await expect(activity.locator(".live-responses-table")).to_have_count(0)

        visitor.allowed_errors = "status of 401"
        await page.get_by_role("button", name="Authorize").click()
        await page.get_by_role("button", name="Remove authorization").click()
        await page.locator(".close-modal").click()
        await listed.get_by_role("button", name="Execute").click()
        await expect(shown(listed)).to_contain_text("invalid_api_key")

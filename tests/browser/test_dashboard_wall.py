"""Several generations at the same time: on the wall over one connection, and one generation in two tabs."""

from __future__ import annotations

import pytest
from playwright.async_api import Locator, Page, expect

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.dashboard import HOSTILE, expect_text, field, link, part, row, start_generation
from tests.support import Gateway, Writer, gateway

pytestmark = pytest.mark.browser


def tile(page: Page, gid: str) -> Locator:
    return page.locator(".tile", has=page.locator(f'a[href="#/{gid}"]'))


def answer(page: Page, gid: str) -> Locator:
    return tile(page, gid).locator("section.answer .text")


async def test_the_wall_follows_several_generations_over_one_connection(
    api: Gateway, broker: Broker, visit: Open
) -> None:
    writers = [await start_generation(api, broker) for _ in range(4)]
    gids = [writer.gid for writer in writers]
    visitor = await visit(api, f"/#/wall/{','.join(gids)}")
    page = visitor.page
    for word in ("one ", "two "):
        for writer in writers:
            await writer.append(f"{word}")
    for gid in gids:
        await expect_text(answer(page, gid), "one two ")
        assert len(visitor.streams(gid)) == 1
    assert visitor.streams(gids[0]) == visitor.streams(gids[3])
    await writers[0].finish()
    await api.http.post(f"/v1/generations/{gids[1]}/cancel")
    await api.http.delete(f"/v1/generations/{gids[2]}")
    for gid, status in zip(gids, ("completed", "cancelled", "gone", "in progress"), strict=True):
        await expect(tile(page, gid).locator(".status")).to_have_text(status)
    await writers[3].append(HOSTILE)
    await expect_text(answer(page, gids[3]), f"one two {HOSTILE}")
    assert len(visitor.streams(gids[3])) == 1
    await tile(page, gids[3]).get_by_role("link").click()
    await expect_text(part(page, "Answer"), f"one two {HOSTILE}")


async def test_generations_selected_in_the_list_are_on_the_wall(api: Gateway, broker: Broker, visit: Open) -> None:
    writers = [await start_generation(api, broker) for _ in range(3)]
    page = (await visit(api)).page
    for writer in writers[:2]:
        await row(page, writer.gid).get_by_role("checkbox").check()
    await page.get_by_role("link", name="Wall (2)").click()
    await expect(page.locator(".tile")).to_have_count(2)
    await page.reload()
    await expect(page.locator(".tile")).to_have_count(2)
    await page.get_by_role("link", name="Generations").click()
    await row(page, writers[2].gid).get_by_role("checkbox").check()
    await page.get_by_role("link", name="Wall (3)").click()
    await page.get_by_role("button", name=f"Remove {writers[2].gid} from the wall").click()
    await expect(page.locator(".tile")).to_have_count(2)
    await expect(page.get_by_role("link", name="Wall (2)")).to_be_visible()
    await tile(page, writers[0].gid).get_by_role("link").click()
    await page.get_by_role("button", name="On the wall", pressed=True).click()
    await page.get_by_role("link", name="Wall (1)").click()
    await writers[1].append("Here.")
    await expect_text(answer(page, writers[1].gid), "Here.")
    await expect(page.locator(".tile")).to_have_count(1)


async def test_a_wall_without_a_selection_shows_running_generations(visit: Open, own_redis: EmbeddedRedis) -> None:
    """New generations take free tiles first, and then the tiles of those that ended first."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        page = (await visit(api, "/#/wall")).page
        await expect(page.get_by_text("No generation is running.")).to_be_visible()
        writers: list[Writer] = []
        for number in range(6):
            writers.append(await start_generation(api, broker))
            await writers[-1].append(f"{number}")
            await expect_text(answer(page, writers[-1].gid), f"{number}")
        await expect(page.get_by_text("No generation is running.")).to_be_hidden()
        await writers[2].finish()
        await expect(tile(page, writers[2].gid).locator(".status")).to_have_text("completed")
        seventh = await start_generation(api, broker)
        await expect(tile(page, seventh.gid)).to_be_visible()
        await expect(tile(page, writers[2].gid)).to_have_count(0)
        await expect(page.locator(".tile")).to_have_count(6)
        await seventh.append("last")
        await expect_text(answer(page, seventh.gid), "last")
        await expect_text(answer(page, writers[0].gid), "0")
        await page.close()


async def test_two_tabs_show_the_same_generation(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    first = (await visit(api, f"/#/{writer.gid}")).page
    await writer.append("one ")
    await expect_text(part(first, "Answer"), "one ")
    second = await first.context.new_page()
    await second.goto(first.url)
    await writer.append("two ")
    for page in (first, second):
        await expect_text(part(page, "Answer"), "one two ")
        await expect(field(page, "subscribers")).to_have_text("2")
    await second.get_by_role("button", name="Cancel", exact=True).click()
    for page in (first, second):
        await expect(field(page, "status")).to_have_text("cancelled")
    await second.get_by_role("link", name="Generations").click()
    await expect(link(second, writer.gid)).to_be_visible()

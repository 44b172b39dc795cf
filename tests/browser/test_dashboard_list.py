"""The live list of generations: its contents, updates, search and filters, and the prompt box."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial

import pytest
from playwright.async_api import Locator, Page, expect

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.dashboard import UNREACHABLE, expect_text, field, link, part, row, start_generation, text_of
from tests.support import Gateway, Writer, gateway, gather, request_body, wait_until

pytestmark = pytest.mark.browser

SHOWN = "nodes => nodes.map(node => node.textContent)"


async def listed_ids(page: Page) -> Sequence[str]:
    return await page.locator("#list a").evaluate_all(SHOWN)


async def expect_rows(page: Page, gids: Sequence[str]) -> None:
    async def same() -> bool:
        return await listed_ids(page) == gids

    await wait_until(same)


async def newest(api: Gateway, most: int = 100) -> list[str]:
    found: list[str] = []
    while len(found) < most:
        after = f"&after={found[-1]}" if found else ""
        page = (await api.http.get(f"/v1/generations?limit={min(100, most - len(found))}{after}")).json()
        found += [generation["id"] for generation in page["data"]]
        if not page["has_more"]:
            break
    return found


async def test_an_empty_list_is_announced_and_any_model_can_be_entered(visit: Open) -> None:
    async with EmbeddedRedis() as redis, gateway(redis.url, TOKENCAST_MODELS="*") as api:
        page = (await visit(api)).page
        await expect(page.get_by_role("heading", name="No generations yet")).to_be_visible()
        await expect(page.get_by_label("Example command")).to_contain_text(f"'{api.url}/v1/generations'")
        await expect(page.locator("#workers-text")).to_have_text("none")
        await page.get_by_role("textbox", name="Model").fill("any-model")
        await page.get_by_role("textbox", name="Prompt").fill("Hello?")
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("heading", name="gen_")).to_be_visible()
        await page.get_by_role("link", name="Generations").click()
        await expect(page.get_by_role("table")).to_contain_text("any-model")
        await expect(page.get_by_text("No generations yet")).to_be_hidden()
        await expect(page.locator("#count-queued")).to_have_text("1")
        await expect(page.locator("#queue")).to_have_text("1")
        await expect(page.locator("#queue-oldest")).to_have_text(re.compile(r"^oldest: [\d.]+ m?s$"))
        await page.close()


async def test_the_list_is_updated_in_place(api: Gateway, broker: Broker, visit: Open) -> None:
    """The newest comes first. Rows are updated in place, so that focus, selection and scroll position are kept."""
    gids = [(await api.create())["id"] for _ in range(40)]
    writer = await Writer(broker.store.redis, gids[4]).claim()
    page = (await visit(api)).page
    chosen = row(page, gids[4])
    await expect(chosen).to_contain_text("in progress")
    await expect_rows(page, await newest(api))
    await link(page, gids[4]).focus()
    await page.locator("#scroll").evaluate("it => { it.scrollTop = it.scrollHeight; }")
    place = (await chosen.bounding_box() or {})["y"]
    latest = (await api.create(request_body(model="sim", metadata={"order": "17"})))["id"]
    await expect(row(page, latest)).to_contain_text("queued")
    await expect(row(page, latest)).to_contain_text("sim")
    await expect(row(page, latest)).to_contain_text("order=17")
    await writer.append("a ", "b ")
    await expect(chosen.locator("[data-field=length]")).to_have_text("≈ 2")
    await api.http.post(f"/v1/generations/{gids[4]}/cancel")
    await expect(chosen).to_contain_text("cancelled")
    await expect(link(page, gids[4])).to_be_focused()
    assert (await chosen.bounding_box() or {})["y"] == pytest.approx(place, abs=1)
    await api.http.delete(f"/v1/generations/{latest}")
    await expect(row(page, latest)).to_have_count(0)
    await expect_rows(page, await newest(api))


async def test_a_running_row_shows_its_rate(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    page = (await visit(api)).page
    spark = row(page, writer.gid).locator("[data-field=spark]")

    async def drawn() -> bool:
        await writer.append("one ", "two ")
        points = await spark.locator("polyline").get_attribute("points") or ""
        return len(points.split()) > 2

    await wait_until(drawn)
    await expect(spark).to_be_visible()
    await expect(row(page, writer.gid).locator("[data-field=rate]")).to_have_text(re.compile(r"^[\d.]+/s$"))
    await expect(row(page, writer.gid).locator("[data-field=first]")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    usage = b'{"finish_reason":"stop","usage":{"completion_tokens":7,"prompt_tokens":3}}'
    await writer.finish(data=usage)
    await expect(row(page, writer.gid)).to_contain_text("completed")
    await expect(spark).to_be_hidden()


async def test_the_list_can_be_filtered_and_searched(api: Gateway, broker: Broker, visit: Open) -> None:
    label = {"customer": "Blue Whale", "trace": "zz-42"}
    found = (await api.create(request_body(model="sim", metadata=label)))["id"]
    writer = await start_generation(api, broker)
    page = (await visit(api)).page
    await expect(row(page, found)).to_be_visible()
    search = page.get_by_role("searchbox", name="Search")
    await page.keyboard.press("/")
    await expect(search).to_be_focused()
    for text in ("customer=blue", "whale ZZ-42", found[8:]):
        await search.fill(text)
        await expect_rows(page, [found])
    await search.fill("nothing like it")
    await expect(page.locator("#list-state")).to_have_text("No generation matches.")
    await expect(page.locator("#announcement")).to_have_text("No generation matches.")
    await search.fill("")
    await page.get_by_label("Status", exact=True).select_option("in_progress")
    await expect(row(page, writer.gid)).to_be_visible()
    await expect(row(page, found)).to_have_count(0)
    await writer.finish()
    await expect(row(page, writer.gid)).to_have_count(0)
    await page.get_by_label("Status", exact=True).select_option("")
    await page.get_by_label("Filter by model").select_option("sim")
    await expect(row(page, found)).to_be_visible()
    await expect(row(page, writer.gid)).to_have_count(0)
    await search.fill(writer.gid)
    await search.press("Enter")
    await expect_text(field(page, "id"), writer.gid)


async def test_a_counter_filters_the_list_by_its_status(visit: Open, own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        waiting = (await api.create())["id"]
        writer = await start_generation(api, broker)
        page = (await visit(api)).page
        await expect_rows(page, [writer.gid, waiting])
        running = page.get_by_role("button", name=re.compile("^In progress 1$"))
        await running.click()
        await expect_rows(page, [writer.gid])
        await expect(page.get_by_label("Status", exact=True)).to_have_value("in_progress")
        await expect(page.get_by_role("button", pressed=True)).to_have_count(1)
        await running.press("Enter")
        await expect_rows(page, [writer.gid, waiting])
        await expect(page.get_by_role("button", pressed=True)).to_have_count(0)
        await page.close()


async def test_a_row_shows_its_subscribers_and_the_code_of_its_failure(
    api: Gateway, broker: Broker, visit: Open
) -> None:
    writer = await start_generation(api, broker)
    page = (await visit(api)).page
    async with aclosing(api.follow(writer.gid)) as one, aclosing(api.follow(writer.gid)) as other:
        await anext(one)
        await anext(other)
        await expect(row(page, writer.gid).locator("[data-field=subscribers]")).to_have_text("2")
        error = {"message": "It stopped.", "type": "server_error", "code": "upstream_truncated"}
        await writer.finish("failed", json.dumps({"error": error}).encode())
    await expect(row(page, writer.gid).locator("[data-field=code]")).to_have_text("upstream_truncated")
    await expect(row(page, writer.gid).locator("[data-field=subscribers]")).to_have_text("")


async def scroll_to(page: Page, rows: Locator, most: int) -> bool:
    """Scroll to the end; repeated, because a row gets its height only when it is visible."""
    await page.locator("#scroll").evaluate("it => { it.scrollTop = it.scrollHeight; }")
    return await rows.count() >= most


async def test_a_list_of_a_thousand_rows_is_loaded_in_pages(visit: Open) -> None:
    """Pages are loaded while scrolling. Invisible rows are not laid out, and a change modifies one row."""
    async with EmbeddedRedis() as redis, gateway(redis.url) as api:
        for _ in range(20):
            await gather(*(api.create() for _ in range(50)))
        page = (await visit(api)).page
        rows = page.locator("#list .row")

        for most in range(200, 1001, 100):
            await wait_until(partial(scroll_to, page, rows, most))
        await expect(page.get_by_role("button", name="Load more")).to_be_hidden()
        gids = await newest(api, 1000)
        await expect_rows(page, gids)
        skipped = (
            "rows => rows.filter(row => !row.firstElementChild.checkVisibility({contentVisibilityAuto: true})).length"
        )
        assert await rows.evaluate_all(skipped) > 900
        await page.evaluate(
            """() => {
                window.touched = new Set();
                new MutationObserver((records) => {
                    for (const { target } of records) touched.add((target.closest ?? target.parentElement.closest)
                        .call(target.closest ? target : target.parentElement, "[data-id]")?.dataset.id);
                }).observe(document.querySelector("#list"), { subtree: true, childList: true, characterData: true });
            }"""
        )
        await api.http.post(f"/v1/generations/{gids[0]}/cancel")
        await expect(row(page, gids[0]).locator("[data-field=status]")).to_have_text("cancelled")
        assert await page.evaluate("id => touched.has(id)", gids[0])
        places = [gids.index(gid) for gid in await page.evaluate("[...touched]")]
        # Rows at the end, where the page is, are asked what they wait for.
        assert all(place == 0 or place > 800 for place in places), places
        await page.close()


async def test_the_next_page_is_loaded_after_a_late_callback_of_the_browser(visit: Open) -> None:
    """A busy browser reports in one callback that the end of the list was invisible and that it is visible now."""
    async with EmbeddedRedis() as redis, gateway(redis.url) as api:
        for _ in range(3):
            await gather(*(api.create() for _ in range(50)))
        page = (await visit(api)).page
        await page.add_init_script(
            """window.IntersectionObserver = class extends IntersectionObserver {
                constructor(told, options) {
                    super((entries) => {
                        const before = entries.map(({ target }) => ({ target, isIntersecting: false }));
                        told([...before, ...entries]);
                    }, options);
                }
            };"""
        )
        await page.reload()
        await wait_until(partial(scroll_to, page, page.locator("#list .row"), 150))
        await page.close()


async def test_a_prompt_is_sent_with_ctrl_enter_and_followed(api: Gateway, broker: Broker, visit: Open) -> None:
    page = (await visit(api)).page
    await expect(page.locator("#model option")).to_have_text(["gabforge-coder", "sim", "m"])
    await page.locator("#model").select_option("sim")
    await page.get_by_role("textbox", name="Prompt").fill("Why is the sky blue?\nBriefly.")
    async with page.expect_request(lambda request: request.method == "POST") as asked:
        await page.get_by_role("textbox", name="Prompt").press("Control+Enter")
    assert (await asked.value).post_data_json == {
        "model": "sim",
        "messages": [{"role": "user", "content": "Why is the sky blue?\nBriefly."}],
    }
    await expect(field(page, "status")).to_have_text("queued")
    await expect(field(page, "model")).to_have_text("sim")
    gid = await text_of(field(page, "id"))
    assert page.url == f"{api.url}/#/{gid}"
    await (await Writer(broker.store.redis, gid).claim()).append("Scattering.")
    await expect_text(part(page, "Answer"), "Scattering.")
    await page.keyboard.press("Escape")
    await expect(link(page, gid)).to_be_focused()


async def test_a_refused_prompt_shows_the_reason(api: Gateway, visit: Open) -> None:
    visitor = await visit(api)
    visitor.allowed_errors = "status of 404"
    page = visitor.page
    await expect(page.locator("#model option")).to_have_count(3)
    await page.locator("#model option").first.evaluate("option => { option.value = 'none'; }")
    await page.get_by_role("textbox", name="Prompt").fill("Hello?")
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#prompt-error")).to_contain_text("`none` does not exist")
    await expect(page.get_by_role("button", name="Send")).to_be_enabled()


async def test_the_page_can_be_used_with_the_keyboard_alone(visit: Open) -> None:
    async with EmbeddedRedis() as redis, gateway(redis.url) as api:
        gids = [(await api.create())["id"] for _ in range(3)][::-1]
        page = (await visit(api)).page
        await expect_rows(page, gids)
        seen: list[str] = []
        while not seen or seen[-1] != f"#/{gids[0]}":
            await page.keyboard.press("Tab")
            seen.append(await page.evaluate("document.activeElement.id || document.activeElement.getAttribute('href')"))
            assert len(seen) < 30, seen
        assert [name for name in seen if name] == [
            *("#/", "#/wall", "#/queue", "#/upstreams", "#/errors", "#/history", "#/workers", "/docs", "show-keys"),
            *(f"count-{status}" for status in ("queued", "in_progress", "completed", "failed", "cancelled")),
            *("prompt", "model", "send"),
            *("filter-search", "filter-status", "filter-model", "filter-code", "filter-upstream", "filter-range"),
            *("list-sort", "choose-all", f"#/{gids[0]}"),
        ]
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("End")
        await expect(link(page, gids[2])).to_be_focused()
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("Space")
        await expect(page.get_by_role("link", name="Wall (1)")).to_have_attribute("href", f"#/wall/{gids[1]}")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("article", name=gids[1])).to_be_visible()
        await expect(page.get_by_role("heading", level=2, name=gids[1])).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(link(page, gids[1])).to_be_focused()
        await page.reload()
        await expect_rows(page, gids)
        for key in ("ArrowDown", "j"):  # nothing has the focus
            await page.keyboard.press(key)
        await expect(link(page, gids[1])).to_be_focused()
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_contain_text("Move through the list")
        await page.keyboard.press("Escape")
        await expect(link(page, gids[1])).to_be_focused()
        await page.keyboard.press("a")
        await expect(page.get_by_role("checkbox", name="Select all")).to_be_checked()
        await page.keyboard.press("c")
        await expect(page.get_by_role("dialog")).to_contain_text("Cancel 3 generations?")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await page.keyboard.press("/")
        await page.keyboard.press("ArrowDown")
        await expect(link(page, gids[1])).to_be_focused()
        await page.close()


async def test_the_list_continues_after_a_restart_of_the_gateway(
    redis: EmbeddedRedis, broker: Broker, visit: Open, port: int
) -> None:
    """Changes during the restart are shown too."""
    async with gateway(redis.url, PORT=str(port)) as first:
        writer = await start_generation(first, broker)
        visitor = await visit(first)
        visitor.allowed_errors = UNREACHABLE
        page = visitor.page
        await expect(row(page, writer.gid)).to_contain_text("in progress")
        await expect(page.locator("#connection")).to_have_text("live")
        first.process.send(signal.SIGKILL)
        await first.process.wait()
    await expect(page.locator("#connection")).to_have_text("reconnecting")
    await expect(page.get_by_role("alert")).to_have_text("The gateway does not answer. Retrying…")
    await writer.finish()
    async with gateway(redis.url, PORT=str(port)) as second:
        await expect(row(page, writer.gid)).to_contain_text("completed")
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.get_by_role("alert")).to_have_count(0)
        latest = (await second.create())["id"]
        await expect(row(page, latest)).to_contain_text("queued")
        await page.close()


def keyed(key: str) -> dict[str, str]:
    return {"TOKENCAST_API_KEYS": f"acme:{hashlib.sha256(key.encode()).hexdigest()}"}


async def test_a_gateway_with_api_keys_gets_one_from_the_user(redis: EmbeddedRedis, visit: Open) -> None:
    """The key is kept for the lifetime of the tab and sent only in a header; another one is requested if it is not
    valid."""
    key = "right-key"
    async with gateway(redis.url, **keyed(key)) as api:
        gid = (await api.create(None, authorization=f"Bearer {key}"))["id"]
        visitor = await visit(api, f"/#/{gid}")
        visitor.allowed_errors = "status of 401"
        page = visitor.page
        await expect(page.get_by_text("This gateway requires an API key.")).to_be_visible()
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type("wrong-key")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("This API key is not valid for this gateway.")).to_be_visible()
        await page.locator("#key").fill(key)
        await page.get_by_role("button", name="Use this key").click()
        await expect(field(page, "status")).to_have_text("queued")
        await expect(field(page, "connection")).to_have_text("live")
        await page.reload()
        await expect(field(page, "connection")).to_have_text("live")
        await page.get_by_role("link", name="Generations").click()
        await expect(row(page, gid)).to_contain_text("queued")
        assert key not in "".join(request.url for request in visitor.requests)
        await page.get_by_role("button", name="Remove the key").click()
        await expect(page.get_by_text("This gateway requires an API key.")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        await page.close()


async def test_at_the_subscriber_limit_the_dashboard_shows_snapshots(
    redis: EmbeddedRedis, broker: Broker, visit: Open
) -> None:
    """The list is refreshed by polling, and a running generation shows its text so far; both are live again after
    another stream has closed."""
    limited = {**keyed("right-key"), "TOKENCAST_TENANT_SUBSCRIBERS": "2"}
    headers = {"authorization": "Bearer right-key"}
    async with gateway(redis.url, **limited) as api, AsyncExitStack() as stack:
        gid = (await api.create(None, **headers))["id"]
        writer = await Writer(broker.store.redis, gid).claim()
        await writer.append("one ")
        others = [await stack.enter_async_context(aclosing(api.follow(gid, **headers))) for _ in range(2)]
        for frames in others:
            await anext(frames)
        page = (await visit(api, key="right-key")).page
        said = "Subscriber limit reached: 2 streams are already open. Retrying…"
        await expect(page.get_by_role("alert")).to_have_text(said)
        await expect(row(page, gid)).to_contain_text("in progress")
        await page.goto(f"{api.url}/#/{gid}")
        await expect_text(part(page, "Answer"), "one ")
        await expect(field(page, "excuse")).to_have_text(said)
        await writer.append("two ")
        for frames in others:
            await frames.aclose()
        await page.evaluate("dispatchEvent(new Event('online'))")  # instead of waiting for ten seconds
        await expect_text(part(page, "Answer"), "one two ")
        await expect(field(page, "excuse")).to_be_hidden()
        await expect(field(page, "connection")).to_have_text("live")
        await page.close()

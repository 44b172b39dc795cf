"""One generation in the dashboard, in a real browser on a real gateway; a scripted worker controls the order of
events."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest
from playwright.async_api import expect

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from tests.browser.conftest import Open
from tests.browser.dashboard import (
    HOSTILE,
    UNREACHABLE,
    claim_again,
    delta,
    expect_text,
    field,
    link,
    part,
    row,
    start_generation,
)
from tests.support import Gateway, Writer, gateway, request_body, wait_until

pytestmark = pytest.mark.browser


async def test_a_generation_is_followed_live(api: Gateway, broker: Broker, visit: Open) -> None:
    """From the queue to the end, with each kind of output in its own section. Then the connection is closed."""
    gid = (await api.create())["id"]
    visitor = await visit(api, f"/#/{gid}")
    page = visitor.page
    await expect(field(page, "status")).to_have_text("queued")
    await expect(field(page, "connection")).to_have_text("live")
    writer = await Writer(broker.store.redis, gid).claim()
    await expect(field(page, "status")).to_have_text("in progress")
    await expect(field(page, "attempt")).to_have_text("1")
    await writer.append("Hello")
    await expect_text(part(page, "Answer"), "Hello")
    await expect(field(page, "cursor")).to_have_text(f"{writer.attempt}-1")
    await writer.append_raw(delta(reasoning_content="Let me "), delta(reasoning="think."), delta(content=", wor"))
    await writer.append_raw(
        delta(content="ld\n\n"), delta(content="\ud83e"), delta(content="\udd80"), delta(1, content="B")
    )
    call = {"index": 0, "id": "call_1", "function": {"name": "search", "arguments": '{"query":'}}
    await writer.append_raw(delta(tool_calls=[call]))
    await writer.append_raw(delta(tool_calls=[{"index": 0, "function": {"arguments": ' "GIL"}'}}]))
    await writer.append_raw(delta(tool_calls=[{"id": "call_2", "function": {"name": "stop", "arguments": "{}"}}]))
    await expect_text(part(page, "Tool call: stop"), "{}")
    await expect_text(part(page, "Tool call: search"), '{"query": "GIL"}')
    await expect_text(part(page, "Reasoning"), "Let me think.")
    await expect_text(part(page, "Answer"), "Hello, world\n\n🦀")
    await expect_text(part(page, "2. Answer"), "B")
    titles = ["Reasoning", "Answer", "Tool call: search", "Tool call: stop", "2. Answer"]
    assert await page.locator(".output h3").all_text_contents() == titles
    usage = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    await writer.finish(data=json.dumps({"finish_reason": "stop", "usage": usage}).encode())
    await expect(field(page, "status")).to_have_text("completed")
    await expect(field(page, "connection")).to_have_text("ended")
    await expect(field(page, "finish")).to_have_text("stop")
    await expect(field(page, "usage")).to_have_text("7 in, 12 out")
    await expect(field(page, "cancel")).to_be_hidden()
    await expect(page.get_by_role("status")).to_have_text("completed")
    assert len(visitor.streams(gid)) == 1


async def test_hostile_output_is_shown_as_text(api: Gateway, broker: Broker, visit: Open) -> None:
    """Everything that a model or a caller can write is shown as text, and none of it is interpreted."""
    writer = await start_generation(api, broker)
    page = (await visit(api, f"/#/{writer.gid}")).page
    call = {"index": 0, "function": {"name": HOSTILE, "arguments": HOSTILE}}
    await writer.append_raw(delta(content=HOSTILE, reasoning=HOSTILE, refusal=HOSTILE, tool_calls=[call]))
    for character in HOSTILE:
        await writer.append(character)
    await expect_text(part(page, "Answer"), HOSTILE * 2)
    await expect_text(part(page, "Reasoning"), HOSTILE)
    await expect_text(part(page, "Refusal"), HOSTILE)
    await expect_text(page.locator(".output section:last-child h3"), "Tool call: " + HOSTILE)
    await expect_text(page.locator("section:last-child .text"), HOSTILE)
    error = {"error": {"message": HOSTILE, "type": "server_error", "code": "<i>code</i>"}}
    await writer.finish("failed", json.dumps(error).encode())
    await expect_text(field(page, "error"), "<i>code</i>: " + HOSTILE)
    assert await page.locator(".output :is(script, img, svg, a, style, i), article i").count() == 0
    await expect(field(page, "status")).to_have_text("failed")


async def test_hostile_model_names_are_shown_as_text(visit: Open) -> None:
    name = "<img src=x onerror=complain('model')>"
    async with EmbeddedRedis() as redis, gateway(redis.url, TOKENCAST_MODELS=name) as api:
        gid = (await api.create(request_body(model=name)))["id"]
        page = (await visit(api, f"/#/{gid}")).page
        await expect_text(field(page, "model"), name)
        await page.get_by_role("link", name="Generations").click()
        await expect_text(row(page, gid).locator("[data-field=model]"), name)
        await expect(page.get_by_label("Filter by model").locator("option")).to_have_text(["Any model", name])
        await expect(page.locator("#model").locator("option")).to_have_text([name])
        await page.close()


async def test_a_reset_removes_the_output_so_far(api: Gateway, broker: Broker, visit: Open) -> None:
    first = await start_generation(api, broker)
    page = (await visit(api, f"/#/{first.gid}")).page
    await first.append_raw(delta(content="lost"), delta(reasoning="lost too"))
    await expect_text(part(page, "Answer"), "lost")
    second = await claim_again(broker, first)
    await expect(field(page, "reset")).to_contain_text("attempt 2 (worker_lost)")
    await expect(page.locator(".output section")).to_have_count(0)
    await second.append("kept")
    await expect_text(part(page, "Answer"), "kept")
    await expect(field(page, "attempt")).to_have_text("2")
    await page.reload()
    await expect_text(part(page, "Answer"), "kept")


async def test_missing_history_is_announced(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    await writer.append(*[f"{number} " for number in range(1, 21)])
    await broker.store.redis.execute("XTRIM", f"tc:{{{writer.gid[14:16]}}}:l:{writer.gid}", "MAXLEN", 5)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await expect(field(page, "gap")).to_have_text(
        f"History is missing: the log was trimmed and continues at {writer.attempt}-16."
    )
    await expect_text(part(page, "Answer"), "16 17 18 19 20 ")
    await expect(field(page, "status")).to_have_text("in progress")


async def test_the_cancel_button_cancels(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    await writer.append("a ", "b ", "c ")
    page = (await visit(api, f"/#/{writer.gid}")).page
    await expect_text(part(page, "Answer"), "a b c ")
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await expect(field(page, "status")).to_have_text("cancelled")
    await expect(field(page, "connection")).to_have_text("ended")
    await expect(field(page, "usage")).to_have_text(re.compile(r"≈ \d+ in, ≈ 3 out"))
    await expect(field(page, "cancel")).to_be_hidden()
    await expect_text(part(page, "Answer"), "a b c ")
    assert (await api.get(writer.gid))["status"] == "cancelled"


async def test_a_failure_is_shown_with_the_partial_output(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Half a ")
    page = (await visit(api, f"/#/{writer.gid}")).page
    error = {"message": "The upstream stopped in the middle.", "type": "server_error", "code": "upstream_truncated"}
    await writer.finish("failed", json.dumps({"error": error}).encode())
    await expect(field(page, "error")).to_have_text("upstream_truncated: The upstream stopped in the middle.")
    await expect(field(page, "connection")).to_have_text("ended")
    await expect_text(part(page, "Answer"), "Half a ")


async def test_a_generation_deleted_while_it_is_shown_is_marked_as_gone(
    api: Gateway, broker: Broker, visit: Open
) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Something")
    visitor = await visit(api, f"/#/{writer.gid}")
    page = visitor.page
    await expect_text(part(page, "Answer"), "Something")
    await expect(field(page, "connection")).to_have_text("live")
    await api.http.delete(f"/v1/generations/{writer.gid}")
    await expect(field(page, "status")).to_have_text("gone")
    await expect(field(page, "error")).to_have_text("This generation was deleted.")
    assert len(visitor.streams(writer.gid)) == 1
    visitor.allowed_errors = "status of 410"
    await page.reload()
    await expect(field(page, "error")).to_be_visible()
    await expect(field(page, "connection")).to_have_text("ended")


async def test_an_unknown_generation_is_reported_and_others_can_be_opened(
    api: Gateway, broker: Broker, visit: Open
) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Here.")
    unknown = "gen_" + "0" * 34
    visitor = await visit(api, f"/#/{unknown}")
    visitor.allowed_errors = "status of 404"
    page = visitor.page
    await expect(field(page, "error")).to_be_visible()
    await expect(field(page, "connection")).to_have_text("ended")
    await page.get_by_role("link", name="Generations").click()
    await link(page, writer.gid).click()
    await expect_text(part(page, "Answer"), "Here.")
    await page.go_back()
    await page.go_back()
    await expect_text(field(page, "id"), unknown)
    await page.evaluate("location.hash = 'nonsense'")
    await expect(page.get_by_role("table", name="Generations")).to_be_visible()
    assert visitor.streams(unknown) == []


async def test_a_reload_in_the_middle_loses_no_output(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await writer.append("one ", "two ")
    await expect_text(part(page, "Answer"), "one two ")
    await page.reload()
    await writer.append("three ")
    await expect_text(part(page, "Answer"), "one two three ")
    await writer.finish()
    await page.reload()
    await expect_text(part(page, "Answer"), "one two three ")
    await expect(field(page, "status")).to_have_text("completed")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_restart_of_the_gateway_loses_no_output(
    redis: EmbeddedRedis, broker: Broker, visit: Open, port: int, how: signal.Signals
) -> None:
    """The gateway is killed or drained. The browser reconnects with its cursor, and shows each word once."""
    async with gateway(redis.url, PORT=str(port)) as first:
        writer = await start_generation(first, broker)
        visitor = await visit(first, f"/#/{writer.gid}")
        visitor.allowed_errors = UNREACHABLE
        page = visitor.page
        await writer.append("one ", "two ")
        await expect_text(part(page, "Answer"), "one two ")
        await expect(field(page, "connection")).to_have_text("live")
        first.process.send(how)
        await first.process.wait()
    await writer.append("three ")
    await expect(field(page, "connection")).to_have_text("reconnecting")
    await expect(page.get_by_role("alert").first).to_have_text("The gateway does not answer. Retrying…")
    await expect_text(part(page, "Answer"), "one two ")
    async with gateway(redis.url, PORT=str(port)):
        await expect_text(part(page, "Answer"), "one two three ")
        await expect(field(page, "connection")).to_have_text("live")
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await writer.append("four")
        await writer.finish()
        await expect(field(page, "status")).to_have_text("completed")
        await expect_text(part(page, "Answer"), "one two three four")
        assert visitor.streams(writer.gid)[-1].url.endswith(f"{writer.gid}@{writer.attempt}-2")


async def test_a_refused_connection_is_tried_again(api: Gateway, broker: Broker, visit: Open) -> None:
    """An EventSource closes at a proxy's 502; the page opens another one, after the cursor that it has."""
    writer = await start_generation(api, broker)
    visitor = await visit(api)
    visitor.allowed_errors = "status of 502"
    page = visitor.page
    refusals = 0

    async def refuse_once(route: Any) -> None:
        nonlocal refusals
        refusals += 1
        await (route.fulfill(status=502, body="<h1>Bad gateway</h1>") if refusals == 1 else route.continue_())

    await page.route("**/v1/events?*", refuse_once)
    await link(page, writer.gid).click()
    await wait_until(lambda: refusals == 2)
    await writer.append("Here.")
    await expect_text(part(page, "Answer"), "Here.")


async def test_a_hidden_page_closes_its_connection(api: Gateway, broker: Broker, visit: Open) -> None:
    """An origin has only six connections. When the page becomes visible again, it continues after its cursor."""
    writer = await start_generation(api, broker)
    visitor = await visit(api, f"/#/{writer.gid}")
    page = visitor.page
    await writer.append("one ")
    await expect_text(part(page, "Answer"), "one ")
    await expect(field(page, "connection")).to_have_text("live")
    become = "state => { document.__defineGetter__('hidden', () => state === 'hidden');" + (
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    async with page.expect_event("requestfailed", lambda request: request in visitor.streams(writer.gid)):
        await page.evaluate(become, "hidden")
    await writer.append("two ")
    await page.evaluate(become, "visible")
    await expect_text(part(page, "Answer"), "one two ")
    assert visitor.streams(writer.gid)[-1].url.endswith(f"{writer.gid}@{writer.attempt}-1")


async def test_a_long_answer_is_appended_without_rewriting_it(api: Gateway, broker: Broker, visit: Open) -> None:
    """Text that has been rendered is not modified again, except for the block that is still growing."""
    writer = await start_generation(api, broker)
    page = (await visit(api, f"/#/{writer.gid}")).page
    answer = part(page, "Answer")
    lines = [f"{number}: " + "lorem ipsum " * 8 + "\n" for number in range(1600)]
    await writer.append(*lines[:1000])
    await expect_text(answer, "".join(lines[:1000]))
    await answer.evaluate(
        """node => {
            const old = new Set([...node.children].slice(0, -1).map((block) => block.firstChild));
            window.touched = 0;
            new MutationObserver((records) => {
                for (const { target, removedNodes } of records) touched += old.has(target) + removedNodes.length;
            }).observe(node, { subtree: true, childList: true, characterData: true });
        }"""
    )
    for shown in range(1100, 1700, 100):
        await writer.append(*lines[shown - 100 : shown])
        await expect_text(answer, "".join(lines[:shown]))
    assert await page.evaluate("touched") == 0
    assert await answer.locator("div").count() > 6
    assert (
        await page.get_by_role("region", name="Output").evaluate(
            "it => it.scrollHeight - it.scrollTop - it.clientHeight"
        )
        < 1
    )


async def test_new_output_keeps_the_scroll_position(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await writer.append(*["line\n" for _ in range(200)])
    await expect_text(part(page, "Answer"), "line\n" * 200)
    await page.get_by_role("region", name="Output").evaluate("output => { output.scrollTop = 100; }")
    await writer.append("more\n")
    await expect_text(part(page, "Answer"), "line\n" * 200 + "more\n")
    assert await page.get_by_role("region", name="Output").evaluate("output => output.scrollTop") == 100


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_the_dashboard_fits_a_phone_in_both_themes(api: Gateway, broker: Broker, visit: Open, theme: str) -> None:
    writer = await start_generation(api, broker)
    await writer.append("long" * 300, "\n", "words " * 200)
    profile: dict[str, Any] = {"viewport": {"width": 340, "height": 640}, "color_scheme": theme}
    page = (await visit(api, f"/#/{writer.gid}", **profile)).page
    await expect(part(page, "Answer")).to_be_visible()
    await expect(part(page, "Answer")).to_be_in_viewport()
    assert await page.evaluate("document.documentElement.scrollWidth") == 340
    shades = await page.evaluate("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
    text, ground = (sum(map(int, re.findall(r"\d+", shade)[:3])) for shade in shades)
    assert (text < ground) == (theme == "light")


async def test_the_stream_is_copied_as_a_curl_command(api: Gateway, visit: Open) -> None:
    gid = (await api.create())["id"]
    command = f"curl -N '{api.url}/v1/generations/{gid}/events'"
    page = (await visit(api, f"/#/{gid}", permissions=["clipboard-read", "clipboard-write"])).page
    await page.get_by_role("button", name="Copy as curl").click()
    await expect(page.get_by_role("status")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == command
    without = (await visit(api, f"/#/{gid}")).page
    await without.evaluate("navigator.clipboard.writeText = async () => { throw new Error() }; 0")
    await without.get_by_role("button", name="Copy as curl").click()
    await expect(field(without, "code")).to_be_visible()
    assert await without.evaluate("getSelection().toString()") == command

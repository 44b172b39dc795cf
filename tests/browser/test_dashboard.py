"""The dashboard in a real browser, on a real gateway; a scripted worker decides what happens when."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from broker import Broker
from broker.embedded import EmbeddedRedis
from tests.browser.conftest import Open
from tests.support import Gateway, Writer, gateway, request_body, wait_until

pytestmark = pytest.mark.browser

UNREACHABLE = "net::ERR_"
HOSTILE = (
    "<script>complain('script')</script>"
    "<img src=x onerror=\"complain('image')\">"
    "<svg onload=complain('svg')></svg>"
    "<a href=\"javascript:complain('link')\">link</a>"
    "</div></article></template><style>*{display:none}</style>"
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 a\u2028b\u2029c \u202e\ufeff\x00 &lt;b&gt; 🦀 \r\n\tend"
)


async def started(api: Gateway, broker: Broker, **body: Any) -> Writer:
    return await Writer(broker.store.redis, (await api.create(request_body(**body)))["id"]).claim()


async def again(broker: Broker, writer: Writer) -> Writer:
    """A second attempt, as after a worker's death."""
    await broker.store.redis.execute("HSET", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}", "st", "queued")
    return await Writer(broker.store.redis, writer.gid).claim()


def delta(index: int = 0, **fields: Any) -> bytes:
    return json.dumps({"choices": [{"index": index, "delta": fields}]}).encode()


def field(page: Page, name: str) -> Locator:
    return page.locator(f"article [data-field={name}]")


def part(page: Page, title: str) -> Locator:
    return page.locator("section", has=page.get_by_role("heading", name=title, exact=True)).locator(".text")


def row(page: Page, gid: str) -> Locator:
    return page.locator(f'#list a[href="#{gid}"]')


async def text_of(locator: Locator) -> str:
    """Exactly; Playwright's own comparison folds white space."""
    return await locator.evaluate("node => node.textContent")


async def says(locator: Locator, text: str) -> None:
    async def same() -> bool:
        return await locator.count() == 1 and await text_of(locator) == text

    await wait_until(same)


async def refreshed(page: Page) -> None:
    """Has the list read once more, as when the page is looked at again; it would be within two seconds anyway."""
    async with page.expect_response(re.compile(r"/v1/generations\?")):
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


async def test_a_gateway_without_generations_says_so_and_takes_any_model(visit: Open) -> None:
    async with EmbeddedRedis() as redis, gateway(redis.url, TOKENCAST_MODELS="*") as api:
        page = (await visit(api)).page
        await expect(page.get_by_text("No generations yet. Send a prompt.")).to_be_visible()
        await expect(page.get_by_text("Choose a generation, or send a prompt.")).to_be_visible()
        await page.get_by_role("textbox", name="Model").fill("any-model")
        await page.get_by_role("textbox", name="Prompt").fill("Hello?")
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("heading", name="gen_")).to_be_visible()
        await expect(page.get_by_role("navigation")).to_contain_text("any-model")
        await expect(page.get_by_text("No generations yet.")).to_be_hidden()


async def test_the_list_is_kept_up_to_date_without_losing_place(api: Gateway, broker: Broker, visit: Open) -> None:
    """Newest first; what changes is changed in place, so that focus, selection and scroll position stay."""
    gids = [(await api.create())["id"] for _ in range(15)]
    writer = await Writer(broker.store.redis, gids[4]).claim()
    page = (await visit(api, f"/#{gids[4]}")).page
    chosen, listed = row(page, gids[4]), page.get_by_role("navigation")
    await expect(chosen).to_have_attribute("aria-current", "true")
    await expect(chosen).to_contain_text("in progress")
    await expect(chosen).to_contain_text("attempt 1")
    assert await page.locator("#list .id").all_text_contents() == (await _newest(api))[:20]
    await chosen.focus()
    await listed.evaluate("nav => { nav.scrollTop = nav.scrollHeight; }")
    place = (await chosen.bounding_box() or {})["y"]
    newest = (await api.create(request_body(model="sim")))["id"]
    await expect(row(page, newest)).to_contain_text("queued")
    await expect(row(page, newest)).to_contain_text("sim")
    await writer.append("a ", "b ")
    await api.http.post(f"/v1/generations/{gids[4]}/cancel")
    await expect(chosen).to_contain_text("cancelled")
    await expect(chosen).to_contain_text("≈ 2 tokens")
    await expect(chosen).to_be_focused()
    await expect(page.locator("[aria-current]")).to_have_count(1)
    assert (await chosen.bounding_box() or {})["y"] == pytest.approx(place, abs=1)
    await api.http.delete(f"/v1/generations/{newest}")
    await refreshed(page)
    await expect(row(page, newest)).to_have_count(0)


async def _newest(api: Gateway) -> list[str]:
    data = (await api.http.get("/v1/generations?limit=100")).json()["data"]
    return [generation["id"] for generation in data]


async def test_older_generations_are_loaded_on_demand_and_stay(api: Gateway, visit: Open) -> None:
    for _ in range(45):
        await api.create()
    page = (await visit(api)).page
    rows = page.locator("#list li")
    await expect(rows).to_have_count(20)
    for expected in (40, 60):
        await page.get_by_role("button", name="Load more").click()
        await expect(rows).to_have_count(min(expected, len(await _newest(api))))
    await refreshed(page)
    assert await page.locator("#list .id").all_text_contents() == (await _newest(api))[:60]


async def test_a_prompt_is_sent_with_ctrl_enter_and_followed(api: Gateway, broker: Broker, visit: Open) -> None:
    page = (await visit(api)).page
    await expect(page.get_by_role("combobox", name="Model").locator("option")).to_have_text(
        ["gabforge-coder", "sim", "m"]
    )
    await page.get_by_role("combobox", name="Model").select_option("sim")
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
    assert page.url == f"{api.url}/#{gid}"
    await expect(row(page, gid)).to_have_attribute("aria-current", "true")
    await (await Writer(broker.store.redis, gid).claim()).append("Scattering.")
    await says(part(page, "Answer"), "Scattering.")


async def test_a_refused_prompt_says_why(api: Gateway, visit: Open) -> None:
    visitor = await visit(api)
    visitor.forgives = "status of 404"
    page = visitor.page
    await expect(page.get_by_role("combobox", name="Model").locator("option")).to_have_count(3)
    await (
        page.get_by_role("combobox", name="Model")
        .locator("option")
        .first.evaluate("option => { option.value = 'none'; }")
    )
    await page.get_by_role("textbox", name="Prompt").fill("Hello?")
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#prompt-error")).to_contain_text("`none` does not exist")
    await expect(page.get_by_role("button", name="Send")).to_be_enabled()


async def test_a_generation_is_followed_live(api: Gateway, broker: Broker, visit: Open) -> None:
    """From the queue to the end, each kind of output in a part of its own; then the connection is given back."""
    gid = (await api.create())["id"]
    visitor = await visit(api, f"/#{gid}")
    page = visitor.page
    await expect(field(page, "status")).to_have_text("queued")
    await expect(field(page, "connection")).to_have_text("live")
    writer = await Writer(broker.store.redis, gid).claim()
    await expect(field(page, "status")).to_have_text("in progress")
    await expect(field(page, "attempt")).to_have_text("1")
    await writer.append("Hello")
    await says(part(page, "Answer"), "Hello")
    await expect(field(page, "cursor")).to_have_text(f"{writer.attempt}-1")
    await writer.append_raw(delta(reasoning_content="Let me "), delta(reasoning="think."), delta(content=", wor"))
    await writer.append_raw(
        delta(content="ld\n\n"), delta(content="\ud83e"), delta(content="\udd80"), delta(1, content="B")
    )
    call = {"index": 0, "id": "call_1", "function": {"name": "search", "arguments": '{"query":'}}
    await writer.append_raw(delta(tool_calls=[call]))
    await writer.append_raw(delta(tool_calls=[{"index": 0, "function": {"arguments": ' "GIL"}'}}]))
    await writer.append_raw(delta(tool_calls=[{"id": "call_2", "function": {"name": "stop", "arguments": "{}"}}]))
    await says(part(page, "Tool call: stop"), "{}")
    await says(part(page, "Tool call: search"), '{"query": "GIL"}')
    await says(part(page, "Reasoning"), "Let me think.")
    await says(part(page, "Answer"), "Hello, world\n\n🦀")
    await says(part(page, "2. Answer"), "B")
    titles = ["Reasoning", "Answer", "Tool call: search", "Tool call: stop", "2. Answer"]
    assert await page.get_by_role("heading", level=3).all_text_contents() == titles
    usage = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    await writer.finish(data=json.dumps({"finish_reason": "stop", "usage": usage}).encode())
    await expect(field(page, "status")).to_have_text("completed")
    await expect(field(page, "connection")).to_have_text("ended")
    await expect(field(page, "finish")).to_have_text("stop")
    await expect(field(page, "usage")).to_have_text("7 in, 12 out")
    await expect(field(page, "cancel")).to_be_hidden()
    await expect(page.get_by_role("status")).to_have_text("completed")
    await refreshed(page)
    assert len(visitor.streams(gid)) == 1


async def test_hostile_output_is_text_and_nothing_else(api: Gateway, broker: Broker, visit: Open) -> None:
    """Wherever a model or a caller can write something: every character is shown, and none of it is obeyed."""
    writer = await started(api, broker)
    page = (await visit(api, f"/#{writer.gid}")).page
    call = {"index": 0, "function": {"name": HOSTILE, "arguments": HOSTILE}}
    await writer.append_raw(delta(content=HOSTILE, reasoning=HOSTILE, refusal=HOSTILE, tool_calls=[call]))
    for character in HOSTILE:
        await writer.append(character)
    await says(part(page, "Answer"), HOSTILE * 2)
    await says(part(page, "Reasoning"), HOSTILE)
    await says(part(page, "Refusal"), HOSTILE)
    await says(page.locator("section:last-child h3"), "Tool call: " + HOSTILE)
    await says(page.locator("section:last-child .text"), HOSTILE)
    error = {"error": {"message": HOSTILE, "type": "server_error", "code": "<i>code</i>"}}
    await writer.finish("failed", json.dumps(error).encode())
    await says(field(page, "error"), "<i>code</i>: " + HOSTILE)
    assert await page.locator(".output :is(script, img, svg, a, style, i), article i").count() == 0
    await expect(field(page, "status")).to_have_text("failed")


async def test_hostile_names_of_models_are_text_too(visit: Open) -> None:
    name = "<img src=x onerror=complain('model')>"
    async with EmbeddedRedis() as redis, gateway(redis.url, TOKENCAST_MODELS=name) as api:
        gid = (await api.create(request_body(model=name)))["id"]
        page = (await visit(api, f"/#{gid}")).page
        await says(field(page, "model"), name)
        await says(row(page, gid).locator(".model"), name)
        await expect(page.get_by_role("combobox", name="Model").locator("option")).to_have_text([name])


async def test_a_reset_takes_back_what_was_shown(api: Gateway, broker: Broker, visit: Open) -> None:
    first = await started(api, broker)
    page = (await visit(api, f"/#{first.gid}")).page
    await first.append_raw(delta(content="lost"), delta(reasoning="lost too"))
    await says(part(page, "Answer"), "lost")
    second = await again(broker, first)
    await expect(field(page, "reset")).to_contain_text("attempt 2 (worker_lost)")
    await expect(page.locator("section")).to_have_count(0)
    await second.append("kept")
    await says(part(page, "Answer"), "kept")
    await expect(field(page, "attempt")).to_have_text("2")
    await page.reload()
    await says(part(page, "Answer"), "kept")


async def test_a_wait_for_the_upstream_says_until_when(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    page = (await visit(api, f"/#{writer.gid}", timezone_id="UTC", locale="de-DE")).page
    noon = 1763812800
    await writer.append_raw(json.dumps({"reason": "rate_limited", "retry_at": noon + 5}).encode(), kind="w")
    await expect(field(page, "waiting")).to_have_text("Waiting for the upstream (rate_limited) until 12:00:05.")
    await writer.append("At last.")
    await says(part(page, "Answer"), "At last.")
    await expect(field(page, "waiting")).to_be_hidden()


async def test_missing_history_is_said_and_never_papered_over(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    await writer.append(*[f"{number} " for number in range(1, 21)])
    await broker.store.redis.execute("XTRIM", f"tc:{{{writer.gid[14:16]}}}:l:{writer.gid}", "MAXLEN", 5)
    page = (await visit(api, f"/#{writer.gid}")).page
    await expect(field(page, "gap")).to_have_text(
        f"History is missing: the log was trimmed, and goes on at {writer.attempt}-16."
    )
    await says(part(page, "Answer"), "16 17 18 19 20 ")
    await expect(field(page, "status")).to_have_text("in progress")


async def test_the_cancel_button_cancels(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    await writer.append("a ", "b ", "c ")
    page = (await visit(api, f"/#{writer.gid}")).page
    await says(part(page, "Answer"), "a b c ")
    await page.get_by_role("button", name="Cancel").click()
    await expect(field(page, "status")).to_have_text("cancelled")
    await expect(field(page, "connection")).to_have_text("ended")
    await expect(field(page, "usage")).to_have_text(re.compile(r"≈ \d+ in, ≈ 3 out"))
    await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    await says(part(page, "Answer"), "a b c ")
    await expect(row(page, writer.gid)).to_contain_text("cancelled")
    assert (await api.get(writer.gid))["status"] == "cancelled"


async def test_a_failure_is_told_with_what_was_written(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    await writer.append("Half a ")
    page = (await visit(api, f"/#{writer.gid}")).page
    error = {"message": "The upstream stopped in the middle.", "type": "server_error", "code": "upstream_truncated"}
    await writer.finish("failed", json.dumps({"error": error}).encode())
    await expect(field(page, "error")).to_have_text("upstream_truncated: The upstream stopped in the middle.")
    await expect(field(page, "connection")).to_have_text("ended")
    await says(part(page, "Answer"), "Half a ")


async def test_a_generation_deleted_while_it_is_shown_is_gone(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    await writer.append("Something")
    visitor = await visit(api, f"/#{writer.gid}")
    page = visitor.page
    await says(part(page, "Answer"), "Something")
    await api.http.delete(f"/v1/generations/{writer.gid}")
    await expect(field(page, "status")).to_have_text("gone")
    await expect(field(page, "error")).to_have_text("This generation was deleted.")
    await expect(row(page, writer.gid)).to_have_count(0)
    assert len(visitor.streams(writer.gid)) == 1
    visitor.forgives = "status of 410"
    await page.reload()
    await expect(field(page, "error")).to_be_visible()
    await expect(field(page, "connection")).to_have_text("ended")


async def test_a_link_to_nothing_says_so_and_another_still_works(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    await writer.append("Here.")
    unknown = "gen_" + "0" * 34
    visitor = await visit(api, f"/#{unknown}")
    visitor.forgives = "status of 404"
    page = visitor.page
    await expect(field(page, "error")).to_be_visible()
    await expect(field(page, "connection")).to_have_text("ended")
    await row(page, writer.gid).click()
    await says(part(page, "Answer"), "Here.")
    await page.go_back()
    await says(field(page, "id"), unknown)
    await page.evaluate("location.hash = 'nonsense'")
    await expect(page.get_by_text("Choose a generation, or send a prompt.")).to_be_visible()
    assert len(visitor.streams(unknown)) == 2


async def test_a_refresh_in_the_middle_loses_nothing(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    page = (await visit(api, f"/#{writer.gid}")).page
    await writer.append("one ", "two ")
    await says(part(page, "Answer"), "one two ")
    await page.reload()
    await writer.append("three ")
    await says(part(page, "Answer"), "one two three ")
    await writer.finish()
    await page.reload()
    await says(part(page, "Answer"), "one two three ")
    await expect(field(page, "status")).to_have_text("completed")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_gateway_that_restarts_costs_nothing(
    redis: EmbeddedRedis, broker: Broker, visit: Open, port: int, how: signal.Signals
) -> None:
    """Killed or drained: the browser comes back by itself with its cursor, and each word is shown once."""
    async with gateway(redis.url, PORT=str(port)) as first:
        writer = await started(first, broker)
        visitor = await visit(first, f"/#{writer.gid}")
        visitor.forgives = UNREACHABLE
        page = visitor.page
        await writer.append("one ", "two ")
        await says(part(page, "Answer"), "one two ")
        first.process.send(how)
        await first.process.wait()
    await writer.append("three ")
    await expect(field(page, "connection")).to_have_text("reconnecting")
    await expect(page.get_by_role("alert").first).to_have_text("The gateway does not answer. Trying again…")
    await says(part(page, "Answer"), "one two ")
    async with gateway(redis.url, PORT=str(port)):
        await says(part(page, "Answer"), "one two three ")
        await expect(field(page, "connection")).to_have_text("live")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await writer.append("four")
        await writer.finish()
        await expect(field(page, "status")).to_have_text("completed")
        await says(part(page, "Answer"), "one two three four")
        resumed = await visitor.streams(writer.gid)[-1].all_headers()
        assert resumed["last-event-id"] == f"{writer.attempt}-2"


async def test_a_refusal_on_the_way_is_no_end(api: Gateway, broker: Broker, visit: Open) -> None:
    """A proxy's 502 closes an EventSource for good; the page opens another, behind what it has."""
    writer = await started(api, broker)
    visitor = await visit(api)
    visitor.forgives = "status of 502"
    page = visitor.page
    refusals = 0

    async def refuse_once(route: Any) -> None:
        nonlocal refusals
        refusals += 1
        await (route.fulfill(status=502, body="<h1>Bad gateway</h1>") if refusals == 1 else route.continue_())

    await page.route("**/events", refuse_once)
    await row(page, writer.gid).click()
    await writer.append("Here.")
    await says(part(page, "Answer"), "Here.")
    assert refusals == 2


async def test_a_hidden_page_gives_its_connection_back(api: Gateway, broker: Broker, visit: Open) -> None:
    """Of six connections per origin; when it is looked at again, it goes on behind what it has."""
    writer = await started(api, broker)
    visitor = await visit(api, f"/#{writer.gid}")
    page = visitor.page
    await writer.append("one ")
    await says(part(page, "Answer"), "one ")
    become = "state => { document.__defineGetter__('hidden', () => state === 'hidden');" + (
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    async with page.expect_event("requestfailed", lambda request: request in visitor.streams(writer.gid)):
        await page.evaluate(become, "hidden")
    await writer.append("two ")
    await page.evaluate(become, "visible")
    await says(part(page, "Answer"), "one two ")
    assert visitor.streams(writer.gid)[-1].url.endswith(f"?after={writer.attempt}-1")


async def test_a_gateway_with_keys_says_that_it_needs_one(redis: EmbeddedRedis, visit: Open) -> None:
    async with gateway(redis.url, TOKENCAST_API_KEYS="acme:" + "0" * 64) as api:
        visitor = await visit(api, "/#gen_" + "0" * 34)
        visitor.forgives = "status of 401"
        alerts = visitor.page.get_by_role("alert")
        text = "This gateway asks for an API key. For now, this page needs an open gateway."
        await expect(alerts).to_have_text([text, text])
        await expect(visitor.page.get_by_text("Loading…")).to_be_hidden()


async def test_a_long_answer_is_appended_not_rewritten(api: Gateway, broker: Broker, visit: Open) -> None:
    """What has been painted is never touched again, except for the block that still grows."""
    writer = await started(api, broker)
    page = (await visit(api, f"/#{writer.gid}")).page
    answer = part(page, "Answer")
    lines = [f"{number}: " + "lorem ipsum " * 8 + "\n" for number in range(1600)]
    await writer.append(*lines[:1000])
    await says(answer, "".join(lines[:1000]))
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
        await says(answer, "".join(lines[:shown]))
    assert await page.evaluate("touched") == 0
    assert await answer.locator("div").count() > 6
    assert await page.locator(".output").evaluate("it => it.scrollHeight - it.scrollTop - it.clientHeight") < 1


async def test_whoever_reads_further_up_is_left_alone(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    page = (await visit(api, f"/#{writer.gid}")).page
    await writer.append(*["line\n" for _ in range(200)])
    await says(part(page, "Answer"), "line\n" * 200)
    await page.locator(".output").evaluate("output => { output.scrollTop = 100; }")
    await writer.append("more\n")
    await says(part(page, "Answer"), "line\n" * 200 + "more\n")
    assert await page.locator(".output").evaluate("output => output.scrollTop") == 100


async def test_the_page_is_used_with_the_keyboard_alone(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await started(api, broker)
    await writer.append("Hello")
    page = (await visit(api)).page
    await expect(row(page, writer.gid)).to_be_visible()
    seen = []
    for _ in range(4):
        await page.keyboard.press("Tab")
        seen.append(await page.evaluate("document.activeElement.id || document.activeElement.hash"))
    assert seen == ["prompt", "model", "send", f"#{writer.gid}"]
    await page.keyboard.press("Enter")
    await says(part(page, "Answer"), "Hello")
    await page.get_by_role("button", name="Cancel").focus()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Copy as curl")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("region", name="Output")).to_be_focused()
    await expect(page.get_by_role("article", name=writer.gid)).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_it_fits_a_phone_in_both_themes(api: Gateway, broker: Broker, visit: Open, theme: str) -> None:
    writer = await started(api, broker)
    await writer.append("long" * 300, "\n", "words " * 200)
    profile: dict[str, Any] = {"viewport": {"width": 340, "height": 640}, "color_scheme": theme}
    page = (await visit(api, f"/#{writer.gid}", **profile)).page
    await expect(part(page, "Answer")).to_be_visible()
    await expect(part(page, "Answer")).to_be_in_viewport()
    assert await page.evaluate("document.documentElement.scrollWidth") == 340
    shades = await page.evaluate("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
    text, ground = (sum(map(int, re.findall(r"\d+", shade)[:3])) for shade in shades)
    assert (text < ground) == (theme == "light")


async def test_the_stream_is_copied_as_a_curl_command(api: Gateway, visit: Open) -> None:
    gid = (await api.create())["id"]
    command = f"curl -N '{api.url}/v1/generations/{gid}/events'"
    page = (await visit(api, f"/#{gid}", permissions=["clipboard-read", "clipboard-write"])).page
    await page.get_by_role("button", name="Copy as curl").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == command
    without = (await visit(api, f"/#{gid}")).page
    await without.evaluate("navigator.clipboard.writeText = async () => { throw new Error() }; 0")
    await without.get_by_role("button", name="Copy as curl").click()
    await expect(field(without, "curl")).to_be_visible()
    assert await without.evaluate("getSelection().toString()") == command

"""The replay of a generation (play, pause, scrub), and the other functions of its page."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from functools import partial

import pytest
from playwright.async_api import Page, expect

from broker import Broker
from tests.browser.conftest import Open
from tests.browser.dashboard import claim_again, delta, expect_text, field, part, start_generation, text_of
from tests.support import DEADLINE, Gateway, Writer, clean_environment, request_body, tell_waiting, wait_until

pytestmark = pytest.mark.browser

SET = "(range, value) => { range.value = value; range.dispatchEvent(new Event('input')); }"


async def completed_generation(api: Gateway, broker: Broker, count: int, apart: int) -> Writer:
    """A completed generation whose tokens are `apart` ms apart."""
    writer = await start_generation(api, broker, metadata={"order": "17"})
    for first in range(0, count, 500):
        chunks = [
            part
            for number in range(first, min(count, first + 500))
            for part in ("c", (number + 1) * apart, text(number))
        ]
        await append(writer, chunks)
    await writer.finish()
    return writer


def text(number: int) -> bytes:
    return delta(content=f"{number} ")


async def append(writer: Writer, items: list[object]) -> None:
    for at in range(0, len(items), 3):
        kind, ms, chunk = items[at : at + 3]
        await writer.append_raw(chunk, kind=kind, at=ms)  # type: ignore[arg-type]


def text_up_to(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


async def attempt_offset(page: Page) -> float:
    """The beginning of the first attempt in ms since the creation: the origin of the tokens' times on the scale."""
    return await page.evaluate(
        """async (id) => {
            const headers = { accept: "application/json" };
            const { data } = await (await fetch(`/v1/generations/${id}/events`, { headers })).json();
            return Math.floor(Number(data[1].id.split("-")[0]) / 1024) - data[0].data.created_at * 1000;
        }""",
        await text_of(field(page, "id")),
    )


async def test_scrubbing_shows_every_moment_of_five_thousand_events(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await completed_generation(api, broker, 5000, 10)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await expect_text(part(page, "Answer"), text_up_to(5000))
    await expect(field(page, "number")).to_have_text("event 5003 of 5003")
    scrub, start = field(page, "scrub"), await attempt_offset(page)
    for count in (2500, 4999, 3, 1, 4000):
        await scrub.evaluate(SET, start + count * 10 + 5)
        await expect_text(part(page, "Answer"), text_up_to(count))
        await expect(field(page, "usage")).to_have_text(f"≈ {count} out")
        await expect(field(page, "status")).to_have_text("in progress")
    await scrub.evaluate(SET, start + 5)
    await expect(part(page, "Answer")).to_have_count(0)
    await expect(field(page, "scrub")).to_have_attribute("aria-valuetext", re.compile(r"^.* of 50\.\d s$"))
    await page.get_by_role("button", name="To the end").click()
    await expect_text(part(page, "Answer"), text_up_to(5000))
    await expect(field(page, "status")).to_have_text("completed")


async def test_typed_parts_and_argument_objects_are_shown_at_every_moment(
    api: Gateway, broker: Broker, visit: Open
) -> None:
    """Content in typed parts, and arguments as objects that replace the previous ones; also backwards in time."""
    writer = await start_generation(api, broker)
    call = {"index": 0, "id": "call_1", "function": {"name": "tides", "arguments": {"port": "Bergen"}}}
    whole = {"index": 0, "id": "call_1", "function": {"name": "tides", "arguments": {"port": "Bergen", "days": 3}}}
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Clouds."}]}
    deltas = [{"content": [thought]}, {"content": "Rain "}, {"content": [{"type": "text", "text": "soon."}]}]
    deltas += [{"tool_calls": [call]}, {"tool_calls": [whole]}]
    for number, fields in enumerate(deltas, start=1):
        await writer.append_raw(delta(**fields), at=number * 1000)
    await writer.finish()
    page = (await visit(api, f"/#/{writer.gid}")).page
    scrub, start = field(page, "scrub"), await attempt_offset(page)
    expected = [("Reasoning", "Clouds."), ("Answer", "Rain "), ("Answer", "Rain soon.")]
    expected += [("Tool call: tides", '{"port":"Bergen"}'), ("Tool call: tides", '{"port":"Bergen","days":3}')]
    await expect_text(part(page, "Tool call: tides"), expected[-1][1])
    for number in (5, 4, 5, 1, 2, 4, 3):
        await scrub.evaluate(SET, start + number * 1000 + 5)
        await expect_text(part(page, expected[number - 1][0]), expected[number - 1][1])
    await expect_text(part(page, "Reasoning"), "Clouds.")
    await expect(part(page, "Tool call: tides")).to_have_count(0)


async def test_a_generation_can_be_played_and_paused(api: Gateway, broker: Broker, visit: Open) -> None:
    """With a replay of sixty times the speed. The page only ever shows a prefix of the text."""
    writer = await completed_generation(api, broker, 400, 100)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await expect_text(part(page, "Answer"), text_up_to(400))
    await field(page, "speed").select_option("10")
    await page.get_by_role("button", name="Play").click()
    seen: list[str] = []

    async def under_way() -> bool:
        seen.append(await part(page, "Answer").text_content() if await part(page, "Answer").count() else "")
        return len(seen[-1]) > 100

    await wait_until(under_way)
    await page.get_by_role("button", name="Pause").click()
    await expect(field(page, "play")).to_have_text("Play")
    paused = await text_of(part(page, "Answer"))
    assert text_up_to(400).startswith(paused)
    assert len(paused) < len(text_up_to(400))
    assert all(text_up_to(400).startswith(one) for one in seen)
    lengths = [len(one) for one in seen]
    assert lengths == sorted(lengths)
    await expect(field(page, "status")).to_have_text("in progress")
    position = await field(page, "scrub").input_value()
    await page.evaluate("new Promise(next => requestAnimationFrame(() => requestAnimationFrame(next)))")
    assert await field(page, "scrub").input_value() == position
    await field(page, "speed").select_option("50")
    await page.get_by_role("button", name="Play").click()
    await expect_text(part(page, "Answer"), text_up_to(400))
    await expect(field(page, "status")).to_have_text("completed")
    await field(page, "scrub").evaluate(SET, 0)
    await expect(field(page, "status")).to_have_text("queued")
    await field(page, "speed").select_option("instant")
    await page.get_by_role("button", name="Play").click()
    await expect_text(part(page, "Answer"), text_up_to(400))


async def test_an_ended_generation_is_shown_from_its_beginning(api: Gateway, broker: Broker, visit: Open) -> None:
    """A replay scrolls with the end of the text. The space bar plays and pauses."""
    writer = await start_generation(api, broker)
    await append(writer, [part for number in range(300) for part in ("c", number * 20, delta(content=f"{number}\n"))])
    await writer.finish()
    page = (await visit(api, f"/#/{writer.gid}")).page
    output = page.get_by_role("region", name="Output")
    await expect(field(page, "connection")).to_have_text("ended")
    await expect_text(part(page, "Answer"), "".join(f"{number}\n" for number in range(300)))
    assert await output.evaluate("it => [it.scrollTop, it.scrollHeight > 2 * it.clientHeight]") == [0, True]
    await page.get_by_role("heading", level=2).focus()
    await page.keyboard.press("Space")
    await expect(field(page, "play")).to_have_text("Pause")
    await page.keyboard.press("Space")
    await expect(field(page, "play")).to_have_text("Play")
    await field(page, "scrub").evaluate("it => { it.value = it.max * 0.9; it.dispatchEvent(new Event('input')); }")
    await wait_until(
        partial(output.evaluate, "it => it.scrollTop > 0 && it.scrollHeight - it.scrollTop - it.clientHeight < 1")
    )


async def test_a_running_generation_can_be_replayed(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await writer.append("one ")
    await writer.append("two ")
    await expect_text(part(page, "Answer"), "one two ")
    await page.get_by_role("button", name=re.compile("^queued")).click()
    await expect(part(page, "Answer")).to_have_count(0)
    await writer.append("three ")
    await expect(field(page, "number")).to_have_text("event 1 of 5")
    await expect(field(page, "connection")).to_have_text("replay")
    await expect(part(page, "Answer")).to_have_count(0)
    await page.get_by_role("button", name="Live").click()
    await expect_text(part(page, "Answer"), "one two three ")
    await writer.append("four")
    await expect_text(part(page, "Answer"), "one two three four")


async def test_the_timeline_shows_attempts_waits_and_the_end(api: Gateway, broker: Broker, visit: Open) -> None:
    gid = (await api.create())["id"]
    await tell_waiting(broker.store.redis, gid, "upstream_busy", 1763812800)
    first = await Writer(broker.store.redis, gid).claim()
    await first.append("lost", at=20)
    second = await claim_again(broker, first)
    await second.append("kept", at=30)
    await second.finish()
    page = (await visit(api, f"/#/{first.gid}")).page
    await expect(field(page, "status")).to_have_text("completed")
    marks = page.get_by_role("list", name="Timeline").get_by_role("button")
    expected = [
        "queued",
        "waiting (upstream busy)",
        "attempt 1",
        "first token",
        "reset, attempt 2",
        "first token",
        "completed",
    ]
    await expect(marks).to_have_text([re.compile("^" + re.escape(one)) for one in expected])
    phases = [await bar.get_attribute("class") for bar in await page.locator("[data-field=strip] rect").all()]
    assert phases == ["queued", "busy", "thinking", "streaming", "thinking", "streaming", "cursor"]
    await marks.nth(3).click()
    await expect_text(part(page, "Answer"), "lost")
    await expect(field(page, "attempt")).to_have_text("1")
    await marks.nth(4).click()
    await expect(part(page, "Answer")).to_have_count(0)
    await marks.nth(5).click()
    await expect_text(part(page, "Answer"), "kept")


async def test_the_request_is_shown_and_can_be_repeated(api: Gateway, broker: Broker, visit: Open) -> None:
    asked = request_body("Say <b>it's</b>\nagain", temperature=0.5, metadata={"order": "<i>17</i>"})
    first = (await api.create(asked))["id"]
    page = (await visit(api, f"/#/{first}", permissions=["clipboard-read", "clipboard-write"])).page
    await expect(field(page, "metadata")).to_contain_text("<i>17</i>")
    await expect_text(field(page, "messages").locator(".text"), "Say <b>it's</b>\nagain")
    await expect(field(page, "parameters")).to_contain_text('"temperature": 0.5')
    await page.get_by_role("button", name="Copy the request as curl").click()
    await expect(page.get_by_role("status")).to_have_text("Copied")
    command = await page.evaluate("navigator.clipboard.readText()")
    assert r"it'\''s" in command
    async with page.expect_request(lambda request: request.method == "POST") as repeated:
        await page.get_by_role("button", name="Retry as new").click()
    assert (await repeated.value).post_data_json == asked
    await expect(field(page, "id")).not_to_have_text(first)
    second = await text_of(field(page, "id"))
    assert (await api.get(second))["metadata"] == asked["metadata"]


async def test_the_raw_events_are_those_of_the_log(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await start_generation(api, broker)
    await writer.append("\u2028<b>")
    page = (await visit(api, f"/#/{writer.gid}")).page
    await page.get_by_text("Raw events", exact=True).click()
    lines = field(page, "raw")
    await expect(lines).to_contain_text(f"{writer.attempt}-1 +")
    assert '{"content":"\u2028<b>"}' in await text_of(lines)
    await writer.finish()
    await expect(lines).to_contain_text("completed")
    assert len((await text_of(lines)).splitlines()) >= 4


async def test_a_generation_is_deleted_after_a_confirmation(api: Gateway, broker: Broker, visit: Open) -> None:
    writer = await completed_generation(api, broker, 2, 10)
    page = (await visit(api, f"/#/{writer.gid}")).page
    await expect(field(page, "connection")).to_have_text("ended")
    await page.get_by_role("button", name="Delete", exact=True).click()
    await page.get_by_role("region", name="Output").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    assert (await api.get(writer.gid))["status"] == "completed"
    await page.get_by_role("button", name="Delete permanently?").click()
    await expect(field(page, "error")).to_have_text("This generation was deleted.")
    assert (await api.http.get(f"/v1/generations/{writer.gid}")).status_code == 410


async def run(*command: str, stdin: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, env=clean_environment(PYTHONPATH=""), stdin=pipe, stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_copied_commands_run(api: Gateway, broker: Broker, visit: Open) -> None:
    """The commands that follow the generation print its text; those that repeat the request create an equal
    generation."""
    asked = request_body('it\'s \\ "so"\n🦀', stop=["a", None], logprobs=False, metadata={"order": "17"})
    writer = await Writer(broker.store.redis, (await api.create(asked))["id"]).claim()
    await writer.append("Grüße ", "🦀")
    await writer.finish()
    visitor = await visit(api, f"/#/{writer.gid}", permissions=["clipboard-read", "clipboard-write"])
    page = visitor.page

    async def copied(name: str) -> str:
        await page.evaluate("navigator.clipboard.writeText('')")
        await page.get_by_role("button", name=name, exact=True).click()

        async def text() -> str:
            return await page.evaluate("navigator.clipboard.readText()")

        return await wait_until(text)

    assert await run(sys.executable, "-", stdin=await copied("Copy as Python")) == "Grüße 🦀"
    assert 'data: {"choices":' in (await run("sh", "-c", await copied("Copy as curl"))).replace(": [", ":[")
    printed: list[str] = []
    page.on("console", lambda line: printed.append(line.text))
    visitor.allowed_errors = "^log:"
    await page.evaluate(f"(() => {{ {await copied('Copy as JavaScript')} }})()")
    await wait_until(lambda: printed == ["Grüße ", "🦀"])
    await run(sys.executable, "-", stdin=await copied("Copy the request as Python"))
    made = [await newest(api)]
    made.append(json.loads(await run("sh", "-c", f"{await copied('Copy the request as curl')} -s"))["id"])
    for gid in made:
        assert gid != writer.gid
        assert (await api.http.get(f"/v1/generations/{gid}?include=request")).json()["request"] == asked


async def newest(api: Gateway) -> str:
    return (await api.http.get("/v1/generations?limit=1")).json()["data"][0]["id"]

"""What the page of a generation tells of its attempts, its worker and its tokens; keys, files, and edited retries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import shard_of
from broker.store import keys
from tests.acceptance.openai.sdk import node
from tests.browser.conftest import Open
from tests.browser.dashboard import claim_again, delta, expect_text, field, part, start_generation
from tests.browser.test_dashboard_looks import violations
from tests.support import Gateway, Writer, gateway, request_body, upstream_sim, wait_until, worker

pytestmark = pytest.mark.browser

CLOCK = """{
    const real = Date.now;
    let shift = 0;
    Date.now = () => real() + shift;
    Date.parse = () => NaN; // the page would correct its clock by that of the gateway
    window.passes = (ms) => { shift += ms; };
}"""


async def figures(page: Page) -> dict[str, str]:
    return {name: await field(page, name).inner_text() for name in ("first", "took", "rate", "usage", "attempt")}


async def test_a_silent_worker_and_an_unusual_gap_are_told(api: Gateway, broker: Broker, visit: Open) -> None:
    """The test sets the clock of the page forward, and then the end of the lease back. With the next token both are
    gone."""
    writer = await start_generation(api, broker)
    redis, meta = broker.store.redis, keys.meta(writer.gid)
    await redis.execute("ZADD", keys.live(shard_of(writer.gid)), 1 << 50, writer.gid)  # no reaper looks
    await redis.execute("HSET", meta, "le", 1 << 50, "ls", 1 << 49)
    visitor = await visit(api)
    page = visitor.page
    await page.add_init_script(CLOCK)
    await page.goto(f"{api.url}/#/{writer.gid}")
    await page.reload()
    for ms in (5000, 5100, 5200):
        await writer.append("a ", at=ms)
    await expect_text(part(page, "Answer"), "a a a ")
    assert (await figures(page))["first"] == "5.00 s"  # by the log, not by the arrival
    await expect(field(page, "silence")).to_be_hidden()
    await page.evaluate("passes(17000)")
    await expect(field(page, "silence")).to_have_text(re.compile(r"^No token for \d+\.\d s\. The worker is alive\.$"))
    now = int(await broker.store.clock.now() * 1000)
    await redis.execute("HSET", meta, "le", now - 30_000, "ls", 15_000)
    lost = re.compile(r"^No sign of life from its worker for .+ s: the worker is lost\.$")
    await expect(field(page, "silence")).to_have_text(lost)
    await writer.append("b", at=900_000)
    await expect_text(part(page, "Answer"), "a a a b")
    await expect(field(page, "silence")).to_be_hidden()


async def test_a_lost_worker_is_told_until_another_one_begins(visit: Open, own_redis: EmbeddedRedis) -> None:
    lease = {"TOKENCAST_LEASE": "2"}
    async with upstream_sim() as sim, gateway(own_redis.url, **lease) as api, connect(own_redis.url) as broker:
        async with worker(own_redis.url, sim, **lease) as first:
            gid = (await api.create(request_body("[[sim length=2000 speed=50]]", model="sim")))["id"]
            page = (await visit(api, f"/#/{gid}")).page
            await expect(part(page, "Answer")).to_contain_text(" ")
            await expect(field(page, "connection")).to_have_text("live")
            first.process.kill()
        lost = field(page, "waiting")
        await expect(lost).to_have_text("Worker lost, waiting for another; it is the next one.")
        await expect(field(page, "status")).to_have_text("queued")
        await expect(page.get_by_role("status").first).to_have_text(
            "Worker lost, waiting for another; it is the next one."
        )
        second = await Writer(broker.store.redis, gid).claim()
        await expect(field(page, "reset")).to_contain_text("attempt 2 (worker_lost)")
        await expect(lost).to_be_hidden()
        await expect(field(page, "status")).to_have_text("in progress")
        await second.append("Again.")
        await second.finish()
        await expect(field(page, "status")).to_have_text("completed")
        await expect(field(page, "reset")).to_be_hidden()
        await page.close()


DIFFERENCES = """async () => {
    const { differences } = await import("/static/detail/diff.js");
    let seed = 7;
    const random = (most) => (seed = (seed * 48271) % 2147483647) % most;
    const text = (words, most) => Array.from({ length: random(most) }, () => words[random(words.length)]).join("");
    const many = ["a ", "b\\n", ...Array.from({ length: 5000 }, (_, number) => `w${number} `)];
    const without = (pieces, kind) => pieces.filter((one) => one.kind !== kind).map((one) => one.text).join("");
    for (let tried = 0; tried < 500; tried++) {
        const [words, most] = tried % 100 ? [[..."ab \\n."], 30] : [many, 30_000]; // too different, or too long
        const [before, after] = [text(words, most), text(words, most)];
        const pieces = differences(before, after);
        if (without(pieces, "added") !== before || without(pieces, "removed") !== after) return tried;
    }
    return 500;
}"""
"""Compares 500 pairs of texts; the pieces must add up to both."""


async def two_attempts(api: Gateway, broker: Broker) -> Writer:
    first = await start_generation(api, broker)
    for number, word in enumerate(("The ", "GIL ", "is ", "a ", "lock.")):
        await first.append(word, at=1 + number)
    second = await claim_again(broker, first)
    for number, word in enumerate(("The ", "GIL ", "was ", "a ", "big ", "lock.")):
        await second.append(word, at=200 + number * 50)
    await second.finish()
    return second


@pytest.mark.node
async def test_attempts_are_compared_and_each_moment_has_keys_and_a_link(
    api: Gateway, broker: Broker, visit: Open
) -> None:
    node()
    writer = await two_attempts(api, broker)
    visitor = await visit(api, f"/#/{writer.gid}", permissions=["clipboard-read", "clipboard-write"])
    page = visitor.page
    await expect(field(page, "status")).to_have_text("completed")
    shown = await figures(page)
    assert (shown["first"], shown["rate"], shown["attempt"]) == ("200 ms", "20/s", "2")
    rows = page.get_by_role("table", name="Attempts").locator("tbody tr")
    await expect(rows).to_have_text(
        [re.compile(r"1\s*1 ms\s*1000/s\s*5\s*worker lost"), re.compile(r"2\s*200 ms\s*20/s\s*6")]
    )

    await page.get_by_role("button", name="Compare", exact=True).click()
    comparison = page.get_by_role("region", name="Comparison of two attempts")
    await expect(comparison.locator("del")).to_have_text(["is"])
    await expect(comparison.locator("ins")).to_have_text(["was", " big"])
    await expect(comparison.get_by_role("status")).to_have_text("1 removed, 2 added")
    await expect(comparison.get_by_label("Left", exact=True)).to_be_focused()
    await comparison.get_by_label("Right", exact=True).select_option("Attempt 1")
    await expect(comparison.get_by_role("status")).to_have_text("The same text")
    assert await page.evaluate(DIFFERENCES) == 500
    assert await violations(page) == []
    await page.set_viewport_size({"width": 390, "height": 700})
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    await page.keyboard.press("Escape")
    await expect(comparison).to_be_hidden()
    await expect(page.get_by_role("button", name="Compare", exact=True)).to_be_focused()

    await page.get_by_role("button", name="Show attempt 1").click()
    await expect_text(part(page, "Answer"), "The GIL is a lock.")
    assert (await figures(page))["first"] == "1 ms"
    await page.get_by_role("heading", level=2).focus()
    for key, text in (
        (",", "The GIL is a "),
        ("[", "The "),
        ("]", ""),
        (".", "The "),
        ("Home", ""),
        ("End", "The GIL was a big lock."),
    ):
        await page.keyboard.press(key)
        if text:
            await expect_text(part(page, "Answer"), text)
        else:
            await expect(part(page, "Answer")).to_have_count(0)
    await page.keyboard.press("ArrowLeft")
    await expect(field(page, "connection")).to_have_text("replay")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    assert await violations(page) == []
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_hidden()
    await expect(field(page, "id")).to_be_visible()

    await page.get_by_role("button", name="Show attempt 1").click()
    await page.get_by_role("button", name="Link to this moment").click()
    await expect(page.get_by_role("status").first).to_have_text("Copied")
    link = await page.evaluate("navigator.clipboard.readText()")
    await page.goto("about:blank")
    await page.goto(link)
    await expect_text(part(page, "Answer"), "The GIL is a lock.")
    await page.goto(f"{api.url}/#/{writer.gid}?at={writer.attempt}-2")
    await expect_text(part(page, "Answer"), "The GIL ")
    await page.goto(f"{api.url}/#/{writer.gid}?at={writer.attempt}-99")
    await expect(field(page, "error")).to_contain_text(f"no event {writer.attempt}-99")

    await page.goto(f"{api.url}/#/{writer.gid}")
    await page.get_by_role("button", name="To the end").click()
    before = await figures(page)
    await page.get_by_role("button", name="Delete", exact=True).click()
    await page.get_by_role("button", name="Delete permanently?").click()
    await expect(field(page, "status")).to_have_text("gone")
    assert await figures(page) == before
    await expect(field(page, "error")).to_have_text("This generation was deleted.")


MARKDOWN = """# Title

Some **bold** *text*, `a < b`, ~~no~~ &lt;tag&gt; and [a link](https://example.com/?a=1&b=2).

- one
- [x] two

| a | b |
|---|--:|
| 1 | 2 |

> quoted

```python
def add(a, b):
    return a + b  # <b>
```

"""
ATTACKS = """<script>complain('script')</script>

<img src=x onerror="complain('image')"> and <svg onload=complain('svg')></svg>
<a href="javascript:complain('html')">x</a>

<iframe srcdoc="<script>parent.complain('frame')</script>"></iframe>

[one](javascript:complain('link')) [two](JaVaScRiPt&colon;complain('entity'))
[three](data:text/html,<script>complain(1)</script>)
[four](&#x6A;avascript:complain('reference')) <javascript:complain('auto')>
[five](\x01javascript:complain('control')) [six](//evil.example/)
![seven](https://evil.example/pixel.png) ![eight](x" onerror="complain('title'))

```"><img src=x onerror=complain('language')>
</code></pre><script>complain('code')</script>
"""


@pytest.mark.node
async def test_output_is_rendered_as_markdown_and_nothing_in_it_runs(api: Gateway, broker: Broker, visit: Open) -> None:
    """While it streams, with an unfinished code block; on a phone; then raw again. Nothing is requested from other
    servers."""
    node()
    writer = await start_generation(api, broker)
    visitor = await visit(api, f"/#/{writer.gid}")
    page = visitor.page
    await writer.append(MARKDOWN[:150])
    await expect_text(part(page, "Answer"), MARKDOWN[:150])
    assert not [request for request in visitor.requests if "/vendor/" in request.url]
    await page.keyboard.press("m")
    answer = part(page, "Answer")
    await expect(answer.get_by_role("heading", name="Title")).to_be_visible()
    for start in range(150, len(MARKDOWN), 7):
        await writer.append(MARKDOWN[start : start + 7])
    await expect(answer.locator("pre .hljs-keyword")).to_have_text(["def", "return"])
    await expect(answer.locator("strong, em, del, li, blockquote p")).to_have_text(
        ["bold", "text", "no", "one", "☑ two", "quoted"]
    )
    await expect(answer.locator("td")).to_have_text(["1", "2"])
    await expect(answer.locator("p").nth(1)).to_contain_text("a < b, no <tag> and")
    assert await answer.locator("a").evaluate_all("links => links.map(({ href, rel }) => [href, rel])") == [
        ["https://example.com/?a=1&b=2", "noopener noreferrer nofollow"]
    ]
    for start in range(0, len(ATTACKS), 11):
        await writer.append(ATTACKS[start : start + 11])
    await expect(answer.locator("pre").last).to_contain_text("<script>complain('code')</script>")
    await writer.append_raw(
        delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": '{"a":{"b":"<i>"}}'}}])
    )
    error = {"error": {"message": "It stopped.", "type": "server_error", "code": "upstream_truncated"}}
    await writer.finish("failed", json.dumps(error).encode())
    await expect(part(page, "Tool call: f")).to_contain_text('"b": "<i>"')
    assert await violations(page) == []
    await page.set_viewport_size({"width": 390, "height": 700})
    await expect(field(page, "error")).to_have_text("upstream_truncated: It stopped.")
    await expect(field(page, "error")).to_be_in_viewport()
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    assert await page.locator(".output :is(script, img, svg, iframe, style, i)").count() == 0
    hrefs = await page.locator(".output a").evaluate_all("links => links.map(({ href }) => href)")
    assert [href for href in hrefs if not href.startswith("https://")] == []
    await page.get_by_role("button", name="Rendered").click()
    await expect_text(answer, MARKDOWN + ATTACKS)


async def test_hostile_markdown_does_not_stop_the_page(api: Gateway, broker: Broker, visit: Open) -> None:
    """Deep nesting, emphasis without end, and a long line: shown as they are."""
    writer = await start_generation(api, broker)
    texts = (">" * 20_000, "***a " * 2000 + "a***" * 2000, "a**b" * 20_000, "[" * 20_000, "- " * 10_000 + "x")
    await writer.append_raw(*[delta(number, content=text) for number, text in enumerate(texts)])
    await writer.append_raw(delta(9, content="one\r"), delta(9, content="\ntwo\r\n\r\n*three*"))
    await writer.finish()
    page = (await visit(api, f"/#/{writer.gid}")).page
    await expect_text(part(page, "Answer"), texts[0])
    await page.keyboard.press("m")
    await expect(part(page, "10. Answer").locator("p")).to_have_text(["one two", "three"])
    for number, text in enumerate(texts[1:], start=2):
        shown = part(page, f"{number}. Answer")
        assert (await shown.text_content() or "").endswith(text[-1])


async def saved(page: Page, button: Locator) -> tuple[str, str]:
    async with page.expect_download() as download:
        await button.click()
    file = await download.value
    return file.suggested_filename, Path(await file.path()).read_text("utf-8")  # noqa: ASYNC240


@pytest.mark.node
async def test_files_are_saved_and_a_request_is_edited(api: Gateway, broker: Broker, visit: Open) -> None:
    node()
    body: dict[str, Any] = request_body("Say it.\nTwice.", temperature=0.5, tokencast={"priority": 2, "group": "g"})
    gid = (await api.create(body))["id"]
    writer = await Writer(broker.store.redis, gid).claim()
    await writer.append("# Hel", "lo", at=10)
    await writer.finish()
    visitor = await visit(api, f"/#/{gid}", permissions=["clipboard-read", "clipboard-write"])
    page = visitor.page
    await expect(field(page, "connection")).to_have_text("ended")
    name, text = await saved(page, page.get_by_role("button", name="Download the text as .md"))
    assert (name, text) == (f"{gid}.md", "# Hello\n")
    _, text = await saved(page, page.get_by_role("button", name="Download the generation as .json"))
    assert json.loads(text) == (await api.http.get(f"/v1/generations/{gid}?include=request")).json()
    _, text = await saved(page, page.get_by_role("button", name="Download the events as .ndjson"))
    events = await api.http.get(f"/v1/generations/{gid}/events", headers={"accept": "application/json"})
    assert [json.loads(line) for line in text.splitlines()] == events.json()["data"]
    await page.get_by_role("button", name="Copy text").click()
    await expect(page.get_by_role("status").first).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == "# Hello"

    await page.get_by_role("button", name="Retry as new").click()
    await expect(field(page, "retry_of")).to_have_text(f"…{gid[-6:]}")
    await field(page, "retry_of").click()
    await expect(field(page, "status")).to_have_text("completed")

    await page.get_by_role("button", name="Edit and retry…").click()
    dialog = page.get_by_role("dialog", name="Edit and retry")
    message = dialog.get_by_label("Message 1: user")
    await expect(message).to_be_focused()
    await expect(message).to_have_value("Say it.\nTwice.")
    assert await violations(page) == []
    parameters = dialog.get_by_label("Parameters (JSON)")
    others = json.loads(await parameters.input_value())
    assert others == {"temperature": 0.5, "tokencast": {"priority": 2, "group": "g"}}
    await parameters.fill("{")
    await page.keyboard.press("Control+Enter")
    await expect(dialog.get_by_role("alert")).to_contain_text("Parameters (JSON)")
    await parameters.fill(json.dumps({**others, "temperature": 1}))
    await message.fill("Once.")
    await page.keyboard.press("Control+Enter")
    await expect(dialog).to_be_hidden()
    await wait_until(lambda: gid not in page.url)
    new = page.url.rpartition("/")[2]
    record = (await api.http.get(f"/v1/generations/{new}?include=request")).json()
    assert record["request"] == {**request_body("Once."), "temperature": 1}
    assert (record["priority"], record["group"]) == (2, "g")

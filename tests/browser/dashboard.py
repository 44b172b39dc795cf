"""Locators of the dashboard's elements, and helpers that write generations."""

from __future__ import annotations

import json
from typing import Any

from playwright.async_api import Locator, Page

from broker import Broker
from broker.store import keys
from tests.support import Gateway, Writer, request_body, wait_until

UNREACHABLE = "net::ERR_"
HOSTILE = (
    "<script>complain('script')</script>"
    "<img src=x onerror=\"complain('image')\">"
    "<svg onload=complain('svg')></svg>"
    "<a href=\"javascript:complain('link')\">link</a>"
    "</div></article></template><style>*{display:none}</style>"
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 a\u2028b\u2029c \u202e\ufeff\x00 &lt;b&gt; 🦀 \r\n\tend"
)


async def start_generation(api: Gateway, broker: Broker, **body: Any) -> Writer:
    return await Writer(broker.store.redis, (await api.create(request_body(**body)))["id"]).claim()


async def claim_again(broker: Broker, writer: Writer) -> Writer:
    """Claim a second attempt, as after a worker's death."""
    await broker.store.redis.execute("HSET", f"tc:{{{writer.gid[14:16]}}}:m:{writer.gid}", "st", "queued", "own", "")
    return await Writer(broker.store.redis, writer.gid).claim()


async def announce_worker(broker: Broker, name: str, gid: str = "") -> None:
    """Write the record of a worker that runs a generation; without one, that of a worker of 0.2.0, which told less."""
    redis, now = broker.queue.redis, int(await broker.history.clock.now() * 1000)
    fields: dict[str, Any] = {"host": f"host-{name}", "pid": 7, "slots": 9, "running": 1, "version": "0.2.0"}
    if gid:
        runs = json.dumps([[gid, "anna", "m", "one", now / 1000 - 61]])
        fields |= {"upstreams": '["one","two"]', "started": now - 3_600_000, "draining": 0, "runs": runs}
    await redis.pipeline(
        [
            ("HSET", keys.worker(name), *(part for field in fields.items() for part in field)),
            ("EXPIRE", keys.worker(name), 600),
            ("ZADD", keys.WORKERS, now, name),
            ("EXPIRE", keys.WORKERS, 600),
        ]
    )


def delta(index: int = 0, **fields: Any) -> bytes:
    return json.dumps({"choices": [{"index": index, "delta": fields}]}).encode()


def field(page: Page, name: str) -> Locator:
    return page.locator(f"article [data-field={name}]")


def part(page: Page, title: str) -> Locator:
    sections = page.locator(".output section", has=page.get_by_role("heading", name=title, exact=True))
    return sections.locator(".text")


def row(page: Page, gid: str) -> Locator:
    return page.locator(f'#list .row[data-id="{gid}"]')


def link(page: Page, gid: str) -> Locator:
    return page.locator(f'#list a[href="#/{gid}"]')


async def text_of(locator: Locator) -> str:
    """The exact text; Playwright's own comparison collapses white space."""
    return await locator.evaluate("node => node.textContent")


async def expect_text(locator: Locator, text: str) -> None:
    async def same() -> bool:
        return await locator.count() == 1 and await text_of(locator) == text

    await wait_until(same)

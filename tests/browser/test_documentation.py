"""The page of docs/openai-clients.md, served by the server of docs/openai-clients.md, in a browser."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect

from tests.acceptance.documents.pages import reading
from tests.support import ROOT
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.timeout(300)]
ANSWER = "".join(pieces(seed_of([{"role": "user", "content": "Explain the GIL in CPython."}]), 60))


async def test_the_documented_page_reads_with_stream_tokens(browser: Browser) -> None:
    async with reading(ROOT / "docs/openai-clients.md") as reader:
        page = await browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(reader.address("9000"))
        await page.get_by_role("button").click()
        await expect(page.locator("pre")).to_have_text(ANSWER)
        assert complaints == []
        await page.close()

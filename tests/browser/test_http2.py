"""More streams on one page than HTTP/1.1 has connections for: through a proxy and HTTP/2 they all live at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import Broker
from tests.acceptance.edge.proxies import PROXIES, proxy
from tests.browser.conftest import Open
from tests.support import Gateway, Writer, gather

pytestmark = [pytest.mark.browser, pytest.mark.proxy]

FOLLOW = """
async (gids) => {
  window.texts = gids.map(() => "");
  window.sources = gids.map((gid, at) => {
    const source = new EventSource(`/v1/generations/${gid}/events`);
    source.addEventListener("chunk", (event) => {
      texts[at] += JSON.parse(event.data).choices[0].delta.content;
    });
    source.addEventListener("completed", () => source.close());
    return source;
  });
}
"""


@pytest.mark.parametrize("name", PROXIES)
async def test_eight_streams_of_one_page_are_live_at_once(
    name: str, api: Gateway, broker: Broker, visit: Open, tmp_path: Path
) -> None:
    """Each word reaches all eight before the next is written, and none of them is closed meanwhile: with six
    connections two would wait for ever."""
    writers = [await Writer(broker.store.redis, (await api.create())["id"]).claim() for _ in range(8)]
    async with proxy(PROXIES[name], api, tmp_path) as behind:
        visitor = await visit(behind, "/healthz", ignore_https_errors=True)
        page = visitor.page
        await page.evaluate(FOLLOW, [writer.gid for writer in writers])
        for word in ("one ", "two ", "three "):
            await gather(*(writer.append(word) for writer in writers))
            await page.wait_for_function("(text) => texts.every((one) => one === text)", arg=writers[0].text)
            assert await page.evaluate("sources.every((source) => source.readyState === EventSource.OPEN)")
        protocols = "performance.getEntriesByType('navigation').map((entry) => entry.nextHopProtocol)"
        assert await page.evaluate(protocols) == ["h2"]
        for writer in writers:
            await writer.finish()
        await page.wait_for_function("sources.every((source) => source.readyState === EventSource.CLOSED)")
        assert all(len(visitor.streams(writer.gid)) == 1 for writer in writers)

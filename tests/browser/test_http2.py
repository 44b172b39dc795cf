"""More streams on one page than the connections of HTTP/1.1: through a proxy with HTTP/2 all of them are live."""

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
async def test_eight_streams_of_one_page_are_live_together(
    name: str, api: Gateway, broker: Broker, visit: Open, tmp_path: Path
) -> None:
    """Each word reaches all eight streams before the next one is written, and none of them is closed meanwhile. With
    six connections, two would wait without end."""
    writers = [await Writer(broker.store.redis, (await api.create())["id"]).claim() for _ in range(8)]
    async with proxy(PROXIES[name], api, tmp_path) as proxied:
        visitor = await visit(proxied, "/healthz", ignore_https_errors=True)
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

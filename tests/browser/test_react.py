"""The components of docs/react.md, unchanged, with the hook of the TypeScript client, in React in a browser."""

from __future__ import annotations

import re
import signal
from itertools import pairwise

import pytest
from playwright.async_api import Route, expect

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.clients.typescript import bundle as bundled
from tests.acceptance.clients.typescript import consumer
from tests.browser.conftest import Open, Watched
from tests.browser.test_tokens import BEARER, keyed
from tests.browser.test_watching import CONNECTION_LOST, start_generation
from tests.support import ROOT, Gateway, Writer, gateway, wait_until

__all__ = ["keyed"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.node]

PAGE = (ROOT / "docs/react.md").read_text("utf-8")
GATEWAY = "https://tokencast.example"
# `show(id)` renders the components in StrictMode, which mounts everything twice; with `tokens` in the provider of the
# page, whose client reads with stream tokens. A second component uses the same generation, and records the frame and
# the time of each of its renders. Another `key` replaces both components with new ones.
APPLICATION = """
import { Fragment, StrictMode, useLayoutEffect } from "react";
import { createRoot } from "react-dom/client";
import { useGeneration } from "tokencast-client/react";
import { Answer } from "./answer.tsx";
import { App, StopButton } from "./app.tsx";

const root = createRoot(document.querySelector("main"));
let frame = 0;
window.renders = [];

(function count() {
  frame++;
  requestAnimationFrame(count);
})();

function Probe({ id }) {
  useGeneration(id);
  useLayoutEffect(() => void renders.push([frame, performance.now()]));
}

window.show = (id, tokens = false, key = 1) => {
  const answer = id && <Fragment key={key}><Answer id={id} /><Probe id={id} /></Fragment>;
  root.render(<StrictMode>{tokens ? <App>{answer}<StopButton id={id} /></App> : answer}</StrictMode>);
};
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The components of the page, the published client, React, and an application, as one script."""
    folder = consumer(tmp_path_factory.mktemp("react"))
    for name, code in zip(
        ("answer.tsx", "app.tsx"), re.findall(r"^```tsx\n(.*?)^```$", PAGE, re.M | re.S), strict=True
    ):
        (folder / name).write_text(code)
    return bundled(APPLICATION, folder=folder)


async def application(visit: Open, api: Gateway, bundle: str) -> Watched:
    """An empty page with the application, in the gateway's origin."""
    visitor = await visit(api, "/healthz")

    async def serve(route: Route) -> None:
        await route.fulfill(body="<!doctype html><meta charset=utf-8><main></main>", content_type="text/html")

    await visitor.page.route(f"{api.url}/application", serve)
    await visitor.page.goto(f"{api.url}/application")
    await visitor.page.add_script_tag(content=bundle.replace(GATEWAY, api.url))
    visitor.allowed_errors = "React DevTools"
    return visitor


async def expect_answer(visitor: Watched, text: str, caption: str) -> None:
    await expect(visitor.page.locator("pre")).to_have_text(text, use_inner_text=False)
    await expect(visitor.page.locator("figcaption")).to_have_text(caption)


async def subscribers(api: Gateway) -> float:
    said = (await api.http.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in said.splitlines() if line.startswith("tokencast_subscribers{"))


async def test_the_hook_shows_the_text_and_discards_it_at_a_reset(
    api: Gateway, broker: Broker, visit: Open, bundle: str
) -> None:
    """With one connection for two components, although StrictMode mounts them twice and others replace them, and with
    one render per frame."""
    visitor = await application(visit, api, bundle)
    writer = Writer(broker.store.redis, (await api.create())["id"])
    await visitor.page.evaluate("id => show(id)", writer.gid)
    await expect_answer(visitor, "", "queued")
    await writer.claim()
    await expect_answer(visitor, "", "in_progress")
    await writer.append("One ", "two ")
    await expect_answer(visitor, "One two ", "in_progress")
    await visitor.page.evaluate("id => show(id, false, 2)", writer.gid)
    await expect_answer(visitor, "One two ", "in_progress")
    await writer.release()
    await writer.claim()
    await expect_answer(visitor, "", "in_progress, attempt 2")
    await visitor.page.evaluate("renders.length = 0")
    numbers = [f"{number} " for number in range(1000)]
    for start in range(0, 1000, 10):
        await writer.append(*numbers[start : start + 10])
    await expect_answer(visitor, "".join(numbers), "in_progress, attempt 2")
    renders = await visitor.page.evaluate("renders")
    assert renders
    for (frame, at), (next_frame, next_at) in pairwise(renders):
        # Two renders in one frame are right only if the browser draws a frame in half a second.
        assert next_frame > frame or next_at - at > 400
    await writer.append_raw(TOOL_CALL)
    await expect(visitor.page.locator("details")).to_have_text("Hm.")
    await expect(visitor.page.locator("code")).to_have_text('look({"a": 1})')
    await writer.finish()
    await expect_answer(visitor, "".join(numbers), "completed, attempt 2")
    await expect(visitor.page.get_by_role("button")).to_have_count(0)
    assert len(visitor.streams(writer.gid)) == 1
    await wait_until(lambda: has_no_subscribers(api))


TOOL_CALL = (
    b'{"choices":[{"index":0,"delta":{"reasoning_content":"Hm.","tool_calls":'
    b'[{"index":0,"id":"call_1","type":"function","function":{"name":"look","arguments":"{\\"a\\": 1}"}}]}}]}'
)


async def has_no_subscribers(api: Gateway) -> bool:
    return await subscribers(api) == 0


async def test_unmounting_the_component_closes_the_connection(
    api: Gateway, broker: Broker, visit: Open, bundle: str
) -> None:
    """Another id closes it too, and the text begins again."""
    one, other = [await start_generation(api, broker) for _ in range(2)]
    await one.append("of the one")
    await other.append("of the other")
    visitor = await application(visit, api, bundle)
    await visitor.page.evaluate("id => show(id)", one.gid)
    await expect_answer(visitor, "of the one", "in_progress")
    assert await subscribers(api) == 1
    await visitor.page.evaluate("id => show(id)", other.gid)
    await expect_answer(visitor, "of the other", "in_progress")

    async def has_one_subscriber() -> bool:
        return await subscribers(api) == 1

    await wait_until(has_one_subscriber)
    await visitor.page.evaluate("show(null)")
    await wait_until(lambda: has_no_subscribers(api))
    await visitor.page.evaluate("id => show(id)", other.gid)  # as after a reload: all of it
    await expect_answer(visitor, "of the other", "in_progress")
    await visitor.page.get_by_role("button").click()
    await expect_answer(visitor, "of the other", "cancelled")


async def page_of_killed_gateway(
    redis: EmbeddedRedis, broker: Broker, visit: Open, bundle: str, port: int
) -> tuple[Watched, Writer]:
    """A page that has received part of the text when its gateway is killed."""
    async with gateway(redis.url, PORT=str(port)) as api:
        writer = await start_generation(api, broker)
        await writer.append("One ", "two ")
        visitor = await application(visit, api, bundle)
        visitor.allowed_errors += f"|{CONNECTION_LOST}"
        await visitor.page.evaluate("id => show(id)", writer.gid)
        await expect_answer(visitor, "One two ", "in_progress")
        api.process.send(signal.SIGKILL)
        await api.process.wait()
    return visitor, writer


async def test_the_hook_resumes_after_a_restart_of_the_gateway(
    redis: EmbeddedRedis, broker: Broker, visit: Open, bundle: str, port: int
) -> None:
    """No text is lost or repeated, and an error is shown."""
    visitor, writer = await page_of_killed_gateway(redis, broker, visit, bundle, port)
    await writer.append("three")
    async with gateway(redis.url, PORT=str(port)):
        await expect_answer(visitor, "One two three", "in_progress")
        await writer.finish("failed", b'{"error":{"message":"It broke.","type":"server_error","code":"c"}}')
        await expect_answer(visitor, "One two three", "It broke.")


async def test_an_expired_token_is_renewed(keyed: Gateway, broker: Broker, visit: Open, bundle: str) -> None:
    """The text continues. The page's own server makes the tokens and cancels."""
    writer = await Writer(broker.store.redis, (await keyed.create(**BEARER))["id"]).claim()
    await writer.append("One ", "two ")
    visitor = await application(visit, keyed, bundle)
    lives = [1]

    async def own_server(route: Route) -> None:
        call, gid = route.request.url.split("/")[-2:]
        body = {"ttl_seconds": lives.pop() if lives else 600} if call == "token" else None
        answer = await keyed.http.post(f"/v1/generations/{gid}/{call}", json=body, headers=BEARER)
        await route.fulfill(body=answer.json().get("token"))

    await visitor.page.route("**/my/*/*", own_server)
    await visitor.page.evaluate("id => show(id, true)", writer.gid)
    await expect_answer(visitor, "One two ", "in_progress")
    await wait_until(lambda: len(visitor.streams(writer.gid)) == 2)
    await writer.append("three")
    await expect_answer(visitor, "One two three", "in_progress")
    await visitor.page.get_by_role("button").last.click()
    await expect_answer(visitor, "One two three", "cancelled")
    statuses = [answer and answer.status for answer in [await one.response() for one in visitor.streams(writer.gid)]]
    assert statuses == [200, 200]


async def test_the_hook_reports_deleted_and_unknown_generations(
    api: Gateway, broker: Broker, visit: Open, bundle: str
) -> None:
    """It is requested only once."""
    writer = await start_generation(api, broker)
    await writer.append("One ")
    visitor = await application(visit, api, bundle)
    visitor.allowed_errors += "|status of 404"
    await visitor.page.evaluate("id => show(id)", writer.gid)
    await expect_answer(visitor, "One ", "in_progress")
    await api.http.delete(f"/v1/generations/{writer.gid}")
    await expect_answer(visitor, "One ", "gone")
    unknown = "gen_01kbn2h8v010" + "0" * 22
    await visitor.page.evaluate("id => show(id)", unknown)
    await expect(visitor.page.locator("figcaption")).to_have_text("No such generation.")
    assert len(visitor.streams(unknown)) == 1


async def test_the_hook_marks_a_gap_in_the_text(
    redis: EmbeddedRedis, broker: Broker, visit: Open, bundle: str, port: int
) -> None:
    """The log is trimmed while the page is disconnected: the text continues after the gap, which is marked."""
    visitor, writer = await page_of_killed_gateway(redis, broker, visit, bundle, port)
    await writer.append("three ", "four ", "five ")
    await broker.store.redis.execute("XTRIM", keys.log(writer.gid), "MAXLEN", 2)
    async with gateway(redis.url, PORT=str(port)):
        await expect_answer(visitor, "[…] four five ", "in_progress")

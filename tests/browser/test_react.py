"""The hook of docs/react.md, unchanged, in React in a browser."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest
from playwright.async_api import Route, expect

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.openai.sdk import NODE, node
from tests.browser.conftest import Open, Watched
from tests.browser.test_tokens import BEARER, keyed
from tests.browser.test_watching import CONNECTION_LOST, start_generation
from tests.support import ROOT, Gateway, Writer, clean_environment, gateway, wait_until

__all__ = ["keyed"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.node]

PAGE = (ROOT / "docs/react.md").read_text("utf-8")
# `show(id, eventsUrl)` renders the component in StrictMode, which mounts everything twice.
APPLICATION = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

const root = createRoot(document.querySelector("main"));
window.show = (id, eventsUrl) =>
  root.render(<StrictMode>{id && <Answer id={id} eventsUrl={eventsUrl} />}</StrictMode>);
"""


@pytest.fixture(scope="module")
def bundle() -> str:
    """The hook and component of the page, React, and an application, as one script."""
    [code] = re.findall(r"^```jsx\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    node()
    options = "--bundle --loader=jsx --jsx=automatic --jsx-dev --format=iife --log-level=warning"
    done = subprocess.run(
        [NODE / "node_modules/.bin/esbuild", *options.split(), '--define:process.env.NODE_ENV="development"'],
        input=code + APPLICATION,
        cwd=NODE,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def application(visit: Open, api: Gateway, bundle: str) -> Watched:
    """An empty page with the application, in the gateway's origin."""
    visitor = await visit(api, "/healthz")

    async def serve(route: Route) -> None:
        await route.fulfill(body="<!doctype html><meta charset=utf-8><main></main>", content_type="text/html")

    await visitor.page.route(f"{api.url}/application", serve)
    await visitor.page.goto(f"{api.url}/application")
    await visitor.page.add_script_tag(content=bundle)
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
    """With one connection, although StrictMode mounts twice."""
    visitor = await application(visit, api, bundle)
    writer = Writer(broker.store.redis, (await api.create())["id"])
    await visitor.page.evaluate("id => show(id)", writer.gid)
    await expect_answer(visitor, "", "queued")
    await writer.claim()
    await expect_answer(visitor, "", "in_progress")
    await writer.append("One ", "two ")
    await expect_answer(visitor, "One two ", "in_progress")
    await writer.release()
    await writer.claim()
    await expect_answer(visitor, "", "in_progress, attempt 2")
    await writer.append("Uno ")
    await expect_answer(visitor, "Uno ", "in_progress, attempt 2")
    await writer.finish()
    await expect_answer(visitor, "Uno ", "completed, attempt 2")
    assert len(visitor.streams(writer.gid)) == 1
    await wait_until(lambda: has_no_subscribers(api))


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
    """The text continues."""
    writer = await Writer(broker.store.redis, (await keyed.create(**BEARER))["id"]).claim()
    await writer.append("One ", "two ")
    visitor = await application(visit, keyed, bundle)
    visitor.allowed_errors += "|status of 401"
    await visitor.page.evaluate(
        """([id, lives, headers]) => show(id, async (id) => {
            const body = JSON.stringify({ ttl_seconds: lives.shift() ?? 600 });
            const made = await fetch(`/v1/generations/${id}/token`, { method: "POST", headers, body });
            return (await made.json()).events_url;
        })""",
        [writer.gid, [2, 2], BEARER],  # for both of StrictMode's mounts
    )
    await expect_answer(visitor, "One two ", "in_progress")

    async def renewed() -> bool:
        answers = [await request.response() for request in visitor.streams(writer.gid)]
        statuses = [answer.status for answer in answers if answer and answer.request.method == "GET"]
        return 401 in statuses and statuses[-1] == 200

    await wait_until(renewed)
    await writer.append("three")
    await expect_answer(visitor, "One two three", "in_progress")
    await writer.finish()
    await expect_answer(visitor, "One two three", "completed")


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
    await expect_answer(visitor, "", "gone")
    assert [request.method for request in visitor.streams(unknown)] == ["GET", "HEAD"]


async def test_the_hook_marks_a_gap_in_the_text(
    redis: EmbeddedRedis, broker: Broker, visit: Open, bundle: str, port: int
) -> None:
    """The log is trimmed while the page is disconnected: the text continues after the gap, which is marked."""
    visitor, writer = await page_of_killed_gateway(redis, broker, visit, bundle, port)
    await writer.append("three ", "four ", "five ")
    await broker.store.redis.execute("XTRIM", keys.log(writer.gid), "MAXLEN", 2)
    async with gateway(redis.url, PORT=str(port)):
        await expect_answer(visitor, "[…] four five ", "in_progress")

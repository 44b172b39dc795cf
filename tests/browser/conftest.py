"""A browser, and pages that a test watches: no console error, no uncaught exception, no CSP violation, and no request
to an origin other than the gateway and the page's own site."""

from __future__ import annotations

import random
import re
import shutil
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from playwright.async_api import Browser, Page, Request, async_playwright, expect

from tests.support import DEADLINE, Gateway

BINARIES = ("chromium", "google-chrome", "chromium-browser")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

expect.set_options(timeout=DEADLINE * 1000)


@pytest.fixture(scope="package")
async def browser() -> AsyncGenerator[Browser, None]:
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BINARIES)}")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=binary, args=ARGUMENTS.split())
        yield started
        await started.close()


class Watched:
    """A page and its unexpected errors and requests. `allowed_errors` matches the errors that a test provokes."""

    def __init__(self, page: Page, *origins: str) -> None:
        self.page = page
        self.allowed_errors = r"(?!)"  # none
        self._allowed = ("data:", *(f"{prefix}{origin}/" for origin in origins for prefix in ("", "blob:")))
        self.requests: list[Request] = []
        self._complaints: list[str] = []

    async def watch(self) -> None:
        def complain(what: str) -> None:
            self._complaints.append(what)

        page = self.page
        page.set_default_timeout(DEADLINE * 1000)
        page.on("request", self._keep)
        page.on("pageerror", lambda error: complain(f"exception: {error}"))
        page.on("dialog", lambda dialog: complain(f"dialog: {dialog.message}"))
        page.on("console", lambda said: complain(f"{said.type}: {said.text} {said.location['url']}"))
        await page.expose_function("complain", complain)
        await page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (e) => complain(`CSP: ${e.violatedDirective}`))"
        )

    def _keep(self, request: Request) -> None:
        self.requests.append(request)

    def check(self) -> None:
        assert [what for what in self._complaints if not re.search(self.allowed_errors, what)] == []
        urls = {request.url for request in self.requests}
        assert [url for url in urls if not url.startswith(self._allowed)] == []

    def requests_to(self, path: str) -> list[Request]:
        """The requests to a path without a query, in their order."""
        return [request for request in self.requests if request.url.endswith(path)]

    def streams(self, gid: str) -> list[Request]:
        """The requests for event streams of a generation, in their order."""
        ways = (f"/{gid}/events", f"generation={gid}")
        streams = [request for request in self.requests if request.headers.get("accept") != "application/json"]
        return [request for request in streams if any(way in request.url for way in ways)]


Open = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def visit(browser: Browser) -> AsyncGenerator[Open, None]:
    """`await visit(gateway, "/#gen_…", color_scheme="dark")`: open a page in a browser profile of its own. With a
    `site`, it is a page of that origin."""
    watched: list[Watched] = []
    async with AsyncExitStack() as stack:

        async def open_page(
            gateway: Gateway, path: str = "/", key: str = "", site: str = "", **profile: object
        ) -> Watched:
            context = await browser.new_context(**profile)  # type: ignore[arg-type]
            if key:
                await context.add_init_script(f"sessionStorage.setItem('tokencast-key', '{key}')")
            stack.push_async_callback(context.close)
            visitor = Watched(await context.new_page(), gateway.url, *([site] if site else []))
            watched.append(visitor)
            await visitor.watch()
            await visitor.page.goto((site or gateway.url) + path)
            return visitor

        yield open_page
        for visitor in watched:
            visitor.check()


@pytest.fixture
def port() -> int:
    """A port that stays free while no process listens on it: outgoing connections get ports from 32768 on."""
    while True:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", number := random.randrange(20_000, 32_000)))
            except OSError:
                continue
            return number

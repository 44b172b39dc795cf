"""Fixtures every test may use. Servers listen on loopback, on free ports, and end with the test."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.servers.forked import ForkServers
from tests.support import ENGINES, Gateway, clean_environment, gateway, upstream_sim, worker

# No deadline of an example: how long one takes depends on the machine. The same examples in every run, so that a test
# fails where it is changed, or never; `--hypothesis-profile=random` draws others.
settings.register_profile("random", deadline=None)
settings.register_profile("tokencast", deadline=None, derandomize=True)
settings.load_profile("tokencast")


# --- how a run is spread over the machine -----------------------------------------------------------------------

LONGEST_FIRST = ("model", "faults", "browser", "acceptance", "integration", "bench")
"""Folders. A file runs in one process, so a long one that came last would run alone at the end; what is not named
here is quick, and fills the gaps."""


def pytest_xdist_auto_num_workers() -> int | None:
    """Two for each core with `-n auto`: half of the time a test waits, for a lease, a drain, a process."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return 2 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=turn)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def quick_starts() -> Iterator[None]:
    """Processes of ours are forked from one that has imported what they import."""
    if not ForkServers.possible:
        yield
        return
    ForkServers.current = ForkServers(clean_environment())
    yield
    ForkServers.current.close()
    ForkServers.current = None


@pytest.fixture(
    params=[pytest.param("valkey"), pytest.param("redis", marks=pytest.mark.engine)],
)
def engine(request: pytest.FixtureRequest) -> str:
    """A server program: first the one that everything else here runs on, then the other one."""
    binary = ENGINES[request.param]
    if binary is None:
        pytest.skip(f"not run: there is no {request.param}-server")
    return binary


@pytest.fixture(scope="module")
async def redis() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server for the tests of a module; every key that they leave in it must have a lifetime."""
    async with checked_redis() as server:
        yield server


@pytest.fixture
async def own_redis() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server for one test alone, for those that bring workers of their own."""
    async with checked_redis() as server:
        yield server


@asynccontextmanager
async def checked_redis() -> AsyncGenerator[EmbeddedRedis, None]:
    async with EmbeddedRedis() as server:
        yield server
        if not server.exited():
            await no_key_without_lifetime(server.url)


async def no_key_without_lifetime(url: str) -> None:
    async with connect(url) as broker:
        redis = broker.store.redis
        names = await redis.execute("KEYS", "*")
        lifetimes = await redis.pipeline([("PTTL", name) for name in names])
    assert [name for name, ttl in zip(names, lifetimes, strict=True) if ttl == -1] == []


@pytest.fixture(scope="module")
async def broker(redis: EmbeddedRedis) -> AsyncGenerator[Broker, None]:
    async with connect(redis.url) as connected:
        yield connected


@pytest.fixture(scope="module")
async def api(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    """A gateway process on it."""
    async with gateway(redis.url) as started:
        yield started


@pytest.fixture(scope="module")
async def sim() -> AsyncGenerator[str, None]:
    """The base URL of a simulated upstream."""
    async with upstream_sim() as url:
        yield url


@pytest.fixture(scope="module")
async def running(redis: EmbeddedRedis, sim: str, api: Gateway) -> AsyncGenerator[Gateway, None]:
    """A gateway with a worker behind it."""
    async with worker(redis.url, sim):
        yield api


# --- what could not be run ------------------------------------------------------------------------------------

OUTSIDE = {
    "browser": "a browser (Chromium)",
    "node": "Node.js",
    "compose": "a container engine with compose",
    "engine": "a second engine (redis-server)",
    "compiler": "a C compiler (cc)",
    "clock": "clocks that are wrong (libfaketime)",
    "proxy": "reverse proxies (nginx, Caddy)",
    "prometheus": "Prometheus's checker of rules (promtool)",
    "shells": "other shells than bash (zsh, fish)",
}
"""Markers of tests that need something no Python package brings."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, count in not_run(terminalreporter).items():
        terminalreporter.write_line(f"NOT RUN: {count} tests that need {OUTSIDE[name]}", yellow=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On a machine that checks others' work, a test that was not run has not passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and os.environ.get("CI") == "true" and not_run(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def not_run(reporter: pytest.TerminalReporter) -> dict[str, int]:
    skipped = reporter.stats.get("skipped", [])
    counts = {name: sum(name in report.keywords for report in skipped) for name in OUTSIDE}
    return {name: count for name, count in counts.items() if count}

"""Fixtures for all tests. Servers listen on loopback, on free ports, and end with the test."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from tests.servers.forked import ForkServers
from tests.support import ENGINES, Gateway, clean_environment, gateway, upstream_sim, worker

# No deadline per example, since the duration depends on the machine. Every run has the same examples, so that a test
# fails only after a change; `--hypothesis-profile=random` draws others.
settings.register_profile("random", deadline=None)
settings.register_profile("tokencast", deadline=None, derandomize=True)
settings.load_profile("tokencast")


# --- parallel runs ----------------------------------------------------------------------------------------------

LONGEST_FIRST = ("model", "faults", "browser", "acceptance", "integration", "bench")
"""Folders. A file runs in one process, so a long one at the end would run alone. Folders not listed here are quick and
run last."""


def pytest_xdist_auto_num_workers() -> int | None:
    """Two per core with `-n auto`: half of the time a test waits for a lease, a drain or a process."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return 2 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def position(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=position)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def fork_servers() -> Iterator[None]:
    """Start our processes as forks of a process that has already imported their modules."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job, and inherited by all children
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
    """A server program: first the engine of all other tests, then the second engine."""
    binary = ENGINES[request.param]
    if binary is None:
        pytest.skip(f"{request.param}-server is not installed")
    return binary


@pytest.fixture(scope="module")
async def redis() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server for the tests of a module. Every key that they leave in it must have a lifetime."""
    async with checked_redis() as server:
        yield server


@pytest.fixture
async def own_redis() -> AsyncGenerator[EmbeddedRedis, None]:
    """A server for a single test, for tests with their own workers."""
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
    """A gateway process on the module's Redis."""
    async with gateway(redis.url) as started:
        yield started


@pytest.fixture(scope="module")
async def sim() -> AsyncGenerator[str, None]:
    """The base URL of a simulated upstream."""
    async with upstream_sim() as url:
        yield url


@pytest.fixture(scope="module")
async def running(redis: EmbeddedRedis, sim: str, api: Gateway) -> AsyncGenerator[Gateway, None]:
    """`api` and a worker, which takes every generation of the module. Tests with a `Writer` need a gateway without a
    worker: a module that has both defines `running` with a Redis of its own."""
    async with worker(redis.url, sim):
        yield api


# --- tests that were skipped ----------------------------------------------------------------------------------

OUTSIDE = {
    "browser": "a browser (Chromium)",
    "node": "Node.js",
    "compose": "a container engine with compose",
    "engine": "a second engine (redis-server)",
    "compiler": "a C compiler (cc)",
    "clock": "wrong clocks (libfaketime)",
    "proxy": "reverse proxies (nginx, Caddy)",
    "prometheus": "Prometheus's rule checker (promtool)",
    "kubernetes": "tools of Kubernetes (helm, kubectl)",
    "release": "tools of `make release` (.cache/release)",
    "shells": "other shells than bash (zsh, fish)",
}
"""Markers of tests that need a program that is not in a Python package."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, count in not_run(terminalreporter).items():
        terminalreporter.write_line(f"NOT RUN: {count} tests that need {OUTSIDE[name]}", yellow=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a CI run with skipped tests."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and os.environ.get("CI") == "true" and not_run(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def not_run(reporter: pytest.TerminalReporter) -> dict[str, int]:
    skipped = reporter.stats.get("skipped", [])
    counts = {name: sum(name in report.keywords for report in skipped) for name in OUTSIDE}
    return {name: count for name, count in counts.items() if count}

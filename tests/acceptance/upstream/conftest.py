"""One simulator for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.upstream.sim_process import simulator


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulator() as (base_url, _):
        yield base_url


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

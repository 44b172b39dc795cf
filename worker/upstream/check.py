"""Tries upstreams without a completion: does the server answer `GET /models`, and does it accept the key?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from broker.settings.settings import Settings
from broker.settings.upstreams import Upstream
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams

CHECK_TIMEOUT = 10.0  # seconds
WITHOUT_LIST = frozenset({404, 405, 501})
"""Statuses of servers that have no list of models: they have answered, and that is all that can be tried for free."""


@dataclass(frozen=True, slots=True)
class UpstreamCheck:
    """What came of a try."""

    upstream: Upstream
    problem: str = ""
    """What is wrong; "" if nothing is."""
    finding: str = ""
    """What was found otherwise."""

    def __str__(self) -> str:
        named = f"{self.upstream.name} at {self.upstream.base_url}"
        return f"{named}: {self.problem or 'ok, ' + self.finding}"


async def check_upstreams(settings: Settings) -> list[UpstreamCheck]:
    """Try all upstreams at the same time."""
    async with Upstreams(settings) as upstreams:
        return await asyncio.gather(*(check_upstream(upstreams, one) for one in settings.all_upstreams()))


async def check_upstream(upstreams: Upstreams, upstream: Upstream) -> UpstreamCheck:
    """Try one upstream."""
    if not upstream.usable:
        missing = upstream.missing
        return UpstreamCheck(upstream, f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set")
    began = time.monotonic()
    try:
        models = await upstreams.models(upstream, CHECK_TIMEOUT)
    except UpstreamError as error:
        if error.status in WITHOUT_LIST:
            return UpstreamCheck(upstream, finding="it answers, and has no list of models")
        return UpstreamCheck(upstream, error.message)
    finding = f"{len(models)} models in {time.monotonic() - began:.2f} s"
    unlisted = [model for model in map(upstream.sent_model, upstream.named) if model not in models]
    return UpstreamCheck(upstream, finding=finding + (f"; not listed: {', '.join(unlisted)}" if unlisted else ""))

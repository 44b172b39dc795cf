"""placeholder until the reaper lands"""

from __future__ import annotations

import asyncio

from broker.connection import Redis
from broker.queue import Queue
from broker.settings import Settings


class Reaper:
    def __init__(self, streams: Redis, queue: Queue, settings: Settings) -> None: ...

    async def run(self) -> None:
        await asyncio.Event().wait()

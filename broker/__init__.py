"""Tokencast's broker: what a generation, an event and a cursor are, where they live in Redis, and fan-out.

    from broker import connect

    async with connect("redis://localhost:6379") as broker:
        generation = await broker.enqueue({"model": "gabforge-coder", "messages": […]})
        async for event in broker.follow(generation.id):
            ...

Knows neither HTTP (`api/`) nor the upstream (`worker/`).
"""

from broker.broker import Broker, connect
from broker.errors import BrokerError
from broker.events import Event
from broker.generation import Generation
from broker.ids import Cursor
from broker.version import __version__

__all__ = ["Broker", "BrokerError", "Cursor", "Event", "Generation", "__version__", "connect"]

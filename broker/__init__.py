"""Tokencast's broker: what a generation, an event and a cursor are, where they live in Redis, and fan-out.

    from broker import connect

    async with connect("redis://localhost:6379") as broker:
        generation = await broker.enqueue({"model": "gabforge-coder", "messages": […]})
        async for event in broker.follow(generation.id):
            ...

Knows neither HTTP (`api/`) nor the upstream (`worker/`).
"""

from broker.errors import (
    BodyTooLarge,
    BrokerError,
    GenerationGone,
    GenerationNotFound,
    IdempotencyConflict,
    InvalidCursor,
    InvalidRequest,
    LimitExceeded,
    Misconfigured,
    ModelNotFound,
    StorageUnavailable,
)
from broker.events import Event
from broker.generation import Generation
from broker.ids import Cursor
from broker.service import Broker, GapFound, connect
from broker.version import __version__

__all__ = [
    "BodyTooLarge",
    "Broker",
    "BrokerError",
    "Cursor",
    "Event",
    "GapFound",
    "Generation",
    "GenerationGone",
    "GenerationNotFound",
    "IdempotencyConflict",
    "InvalidCursor",
    "InvalidRequest",
    "LimitExceeded",
    "Misconfigured",
    "ModelNotFound",
    "StorageUnavailable",
    "__version__",
    "connect",
]

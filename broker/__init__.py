"""Tokencast's broker: generations, their event logs in Redis, the queue, and the fan-out to subscribers.

    from broker import connect

    async with connect("redis://localhost:6379") as broker:
        generation = await broker.enqueue({"model": "gabforge-coder", "messages": […]})
        async for event in broker.follow(generation.id):
            ...

Independent of the HTTP server (`api/`) and of the upstream client (`worker/`). Start with `broker.py`.
"""

from broker.broker import Broker, Page, connect
from broker.bulk.operations import Cancelled, Deleted, Retried
from broker.errors import (
    BodyTooLarge,
    BrokerError,
    DeliveryNotFound,
    GenerationGone,
    GenerationNotFound,
    GroupNotFound,
    IdempotencyConflict,
    InvalidCursor,
    InvalidRequest,
    InvalidToken,
    LimitExceeded,
    Misconfigured,
    ModelNotFound,
    NotEnded,
    RequestNotKept,
    StorageUnavailable,
    TokenExpired,
    UpstreamNotFound,
    WorkerNotFound,
)
from broker.events import Event, GapFound
from broker.generation import Generation
from broker.ids import Cursor
from broker.version import __version__

__all__ = [
    "BodyTooLarge",
    "Broker",
    "BrokerError",
    "Cancelled",
    "Cursor",
    "Deleted",
    "DeliveryNotFound",
    "Event",
    "GapFound",
    "Generation",
    "GenerationGone",
    "GenerationNotFound",
    "GroupNotFound",
    "IdempotencyConflict",
    "InvalidCursor",
    "InvalidRequest",
    "InvalidToken",
    "LimitExceeded",
    "Misconfigured",
    "ModelNotFound",
    "NotEnded",
    "Page",
    "RequestNotKept",
    "Retried",
    "StorageUnavailable",
    "TokenExpired",
    "UpstreamNotFound",
    "WorkerNotFound",
    "__version__",
    "connect",
]

"""Tokencast's broker: generations, their event logs in Redis, the queue, and the fan-out to subscribers.

    from broker import connect

    async with connect("redis://localhost:6379") as broker:
        generation = await broker.enqueue({"model": "gabforge-coder", "messages": […]})
        async for event in broker.follow(generation.id):
            ...

Independent of the HTTP server (`api/`) and of the upstream client (`worker/`). Start with `broker.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from broker.broker import Broker, Page, connect
    from broker.bulk.operations import Cancelled, Deleted, Retried

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

_ON_USE = {
    "Broker": "broker.broker",
    "Page": "broker.broker",
    "connect": "broker.broker",
    "Cancelled": "broker.bulk.operations",
    "Deleted": "broker.bulk.operations",
    "Retried": "broker.bulk.operations",
}
"""Names and their modules, which are imported when they are used: most commands need none of them, and start in four
fifths of the time."""


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_USE[name]), name)

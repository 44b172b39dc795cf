"""The Python client of Tokencast, sync and async.

    from tokencast_client import Client

    client = Client()                       # TOKENCAST_URL, TOKENCAST_API_KEY
    generation = client.enqueue(model="gabforge-coder", messages=[…])
    for event in client.follow(generation.id):
        print(event.text, end="")

Imports nothing of the broker. `operations.py` describes the routes, `streams/` the streams over several connections;
both without I/O. `client.py` and `async_client.py` send them. Start with `client.py`.
"""

from tokencast_client.async_client import AsyncClient
from tokencast_client.client import Client
from tokencast_client.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    InvalidRequest,
    Misconfigured,
    NotFound,
    RateLimited,
    RequestRefused,
    ServerError,
    TokencastError,
    Unauthorized,
    UnexpectedResponse,
    Unreachable,
    WaitTimeout,
    WebhookVerificationError,
)
from tokencast_client.operations import generation_request
from tokencast_client.outcomes import GenerationCancelled, GenerationFailed
from tokencast_client.records import (
    TERMINAL_EVENTS,
    Delivery,
    Event,
    Generation,
    Group,
    Queue,
    QueueLevel,
    QueueState,
    RetryResult,
    Status,
    Token,
    Upstream,
)
from tokencast_client.streams.transcript import Transcript
from tokencast_client.version import __version__
from tokencast_client.webhooks import WebhookEvent, verify_webhook

__all__ = [
    "TERMINAL_EVENTS",
    "AsyncClient",
    "BadRequest",
    "Client",
    "Conflict",
    "Delivery",
    "Event",
    "Forbidden",
    "Generation",
    "GenerationCancelled",
    "GenerationFailed",
    "Gone",
    "Group",
    "InvalidRequest",
    "Misconfigured",
    "NotFound",
    "Queue",
    "QueueLevel",
    "QueueState",
    "RateLimited",
    "RequestRefused",
    "RetryResult",
    "ServerError",
    "Status",
    "Token",
    "TokencastError",
    "Transcript",
    "Unauthorized",
    "UnexpectedResponse",
    "Unreachable",
    "Upstream",
    "WaitTimeout",
    "WebhookEvent",
    "WebhookVerificationError",
    "__version__",
    "generation_request",
    "verify_webhook",
]

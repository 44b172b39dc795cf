"""What a dialect's folder provides to the application: `api/app.py` has one line for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route

from api.streaming.follow import Follow
from broker.broker import Broker


@dataclass(frozen=True, slots=True)
class Mounted:
    """A dialect in one application: its routes, and what is to be called at the end."""

    routes: Sequence[Route]
    close: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class DialectApi:
    """The HTTP side of a dialect. `paths` and `schemas` are its part of `/openapi.json`."""

    name: str
    """The value of the metrics' label `dialect`."""
    mount: Callable[[Broker, Follow], Mounted]
    paths: Callable[[], dict[str, Any]]
    schemas: dict[str, Any]
    strict_prefix: str | None = None
    """Paths whose streams are refused with an error status if the gateway is full, not asked to reconnect: clients that
    take a clean end for success."""

    def __hash__(self) -> int:
        return hash(self.name)

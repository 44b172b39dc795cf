"""The interface between a dialect's folder and the application: `api/app.py` lists a `DialectApi` for each dialect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route

from api.streaming.follow import Follow
from broker.broker import Broker


@dataclass(frozen=True, slots=True)
class Mounted:
    """A dialect in one application: its routes, and `close`, which is called at the end."""

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
    """Prefix of paths whose streams are refused with an error status if the gateway is full, instead of being asked to
    reconnect: their clients take a clean end for success."""

    def __hash__(self) -> int:
        return hash(self.name)

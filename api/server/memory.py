"""Bounded memory for whole responses that their callers have not read yet, in total and per tenant.

A response occupies memory from the moment it is read from Redis until its caller has taken it. A handler that is about
to make one reserves room first, and waits while other responses fill it. Meanwhile connections that read too slowly are
dropped: a response that is being read delays others only for a moment, and one that is not read costs its own caller.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Protocol, cast

from starlette.requests import Request

from api.server.wire import EXTENSION
from broker.errors import LimitExceeded
from broker.queue.quotas import OPEN_TENANT

TENANT_DIVISOR = 4
"""A tenant may use one part in this many of the memory."""
MAX_CONCURRENT = 16  # responses that are being made at the same time
MAX_WAIT = 5.0  # seconds that a caller waits for room
CHECK_INTERVAL = 0.5  # seconds between two checks for slow readers
SMALL_BYTES = 64 * 1024  # bytes; a smaller response does not wait, it fits into the sockets' own buffers
MIN_RATE = (
    16 * 1024
)  # bytes per second: the least for a reader not to count as slow; request bodies have the same limit
RETRY_AFTER = 5  # `Retry-After` in seconds


Size = Callable[[], Awaitable[int]]


def reserve(request: Request, tenant: str, size: Size | None = None) -> AbstractAsyncContextManager[None]:
    """Reserve memory while a response is made; the response must be handed to the server right after. `size` returns
    about how many bytes it will have and is called only if there is no room. A no-op on other servers than ours. Raises
    LimitExceeded."""
    found = cast("dict[str, Any]", request.scope.get("extensions") or {}).get(EXTENSION)
    cycle = found() if found is not None else None
    if cycle is None:
        return nullcontext()
    protocol: TenantConnection = cycle.transport.protocol
    protocol.tenant = tenant
    return protocol.unread.reserve(tenant, size)


class TenantConnection(Protocol):
    """The part of `api/server/protocol.py` that this module uses."""

    tenant: str
    unread: ResponseMemory


class Holder(Protocol):
    """A connection with a response that was not taken at once."""

    @property
    def pending(self) -> int:
        """Bytes of the response that are left."""
        ...

    def drop(self) -> None:
        """End the connection at once."""
        ...


class _UnreadResponse:
    """State of a holder: the bytes left at the last check, and the time of that check."""

    __slots__ = ("at", "size", "tenant")

    def __init__(self, tenant: str, size: int, at: float) -> None:
        self.tenant = tenant
        self.size = size
        self.at = at


class ResponseMemory:
    """The memory budget; `most` is the total in bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._of_tenant: Counter[str] = Counter()
        self._held: dict[Holder, _UnreadResponse] = {}
        self._making = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order in which tenants are served
        self._timer: asyncio.TimerHandle | None = None

    # --- making responses ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def reserve(self, tenant: str, size: Size | None = None) -> AsyncGenerator[None, None]:
        busy = bool(self._waiting) or not self._has_room(tenant)
        if busy and (size is None or await size() > SMALL_BYTES):
            await self._wait_for_room(tenant)
        else:
            self._making += 1
        try:
            yield
        finally:
            self._making -= 1
            self._admit_waiting()

    def _has_room(self, tenant: str) -> bool:
        return self._making < MAX_CONCURRENT and self._total < self._most and not self._over_share(tenant)

    def _over_share(self, tenant: str) -> bool:
        return tenant != OPEN_TENANT and self._of_tenant[tenant] >= self._most // TENANT_DIVISOR

    async def _wait_for_room(self, tenant: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._admit_waiting()
        self._schedule_check()
        try:
            async with asyncio.timeout(MAX_WAIT):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # admitted and cancelled at the same time
                self._making -= 1
            turn.cancel()
            self._admit_waiting()
            if isinstance(error, TimeoutError):
                message = "Too many answers have not been read by their callers yet; try again in a moment."
                raise LimitExceeded(message, retry_after=RETRY_AFTER) from None
            raise

    def _admit_waiting(self) -> None:
        """Admit waiting handlers while there is room, one tenant after another, each in order of arrival."""
        passed = 0
        while self._waiting and passed < len(self._waiting):
            tenant = next(iter(self._waiting))
            line = self._waiting.pop(tenant)
            while line and line[0].done():
                line.popleft()
            if line and self._has_room(tenant):
                line.popleft().set_result(None)
                self._making += 1
                passed = 0
            else:
                passed += 1
            if line:
                self._waiting[tenant] = line

    # --- responses being read -----------------------------------------------------------------------------

    def hold(self, holder: Holder, tenant: str) -> None:
        """Count a response that was sent but not fully taken by the peer."""
        held = self._held[holder] = _UnreadResponse(tenant, holder.pending, asyncio.get_running_loop().time())
        self._count(held, held.size)

    def release(self, holder: Holder) -> None:
        """Stop counting a response: the peer has taken it or is gone."""
        held = self._held.pop(holder, None)
        if held is not None:
            self._count(held, -held.size)
            self._admit_waiting()

    def _count(self, held: _UnreadResponse, size: int) -> None:
        self._total += size
        self._of_tenant[held.tenant] += size
        if not self._of_tenant[held.tenant]:
            del self._of_tenant[held.tenant]

    # --- slow readers -------------------------------------------------------------------------------------

    def _schedule_check(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._drop_slow)

    def _drop_slow(self) -> None:
        """Drop slow readers among the connections whose memory others wait for."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        for holder, held in list(self._held.items()):
            wanted = self._total >= self._most or (held.tenant in self._waiting and self._over_share(held.tenant))
            if not wanted or now - held.at < CHECK_INTERVAL:
                continue
            taken = held.size - holder.pending
            if taken < MIN_RATE * (now - held.at):
                holder.drop()
                self.release(holder)
            else:
                self._count(held, -taken)
                held.size, held.at = held.size - taken, now
        self._admit_waiting()
        self._schedule_check()

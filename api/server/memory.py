"""Whole answers that their callers have not taken yet: what a process keeps of them is bounded, in all and for each
tenant.

An answer exists from when it is read from Redis until its caller has taken it. A handler that is about to make one asks
for room first, and waits while other answers fill it. Meanwhile those that are taken too slowly are dropped: an answer
that is read delays others by a moment at most, and one that is not read costs its own caller.
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

PARTS = 4
"""A tenant's part of all there is room for is one of so many."""
AT_ONCE = 16  # answers that are being made
PATIENCE = 5.0  # seconds that a caller waits for room
LOOK = 0.5  # seconds between two looks at those who are slow
SMALL = 64 * 1024  # bytes; a smaller answer waits for nobody, the sockets' own buffers take it
RATE = 16 * 1024  # bytes a second; who takes more is not slow, and request bodies must come as fast
SOON = 5  # seconds after which a caller may try again


Size = Callable[[], Awaitable[int]]


def reserve(request: Request, tenant: str, size: Size | None = None) -> AbstractAsyncContextManager[None]:
    """For the time in which an answer is made, and no longer: it must be handed to the server right after. `size`:
    about how many bytes it will have, which is asked only where there is no room. Other servers than ours know nothing
    of it. LimitExceeded."""
    found = cast("dict[str, Any]", request.scope.get("extensions") or {}).get(EXTENSION)
    cycle = found() if found is not None else None
    if cycle is None:
        return nullcontext()
    protocol: Connection = cycle.transport.protocol
    protocol.tenant = tenant
    return protocol.unread.reserve(tenant, size)


class Connection(Protocol):
    """The part of `api/server/protocol.py` that is used here."""

    tenant: str
    unread: ResponseMemory


class Holder(Protocol):
    """A connection with an answer that was not taken at once."""

    @property
    def pending(self) -> int:
        """Bytes of it that are left."""
        ...

    def drop(self) -> None:
        """Ends the connection at once."""
        ...


class _Held:
    """What is known of a holder: bytes that were left at the last look, and when that was."""

    __slots__ = ("at", "size", "tenant")

    def __init__(self, tenant: str, size: int, at: float) -> None:
        self.tenant = tenant
        self.size = size
        self.at = at


class ResponseMemory:
    """`most`: bytes, in all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._of_tenant: Counter[str] = Counter()
        self._held: dict[Holder, _Held] = {}
        self._making = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the tenant whose turn is next first
        self._timer: asyncio.TimerHandle | None = None

    # --- those who make answers --------------------------------------------------------------------------

    @asynccontextmanager
    async def reserve(self, tenant: str, size: Size | None = None) -> AsyncGenerator[None, None]:
        busy = bool(self._waiting) or not self._free(tenant)
        if busy and (size is None or await size() > SMALL):
            await self._line_up(tenant)
        else:
            self._making += 1
        try:
            yield
        finally:
            self._making -= 1
            self._go_on()

    def _free(self, tenant: str) -> bool:
        return self._making < AT_ONCE and self._total < self._most and not self._over(tenant)

    def _over(self, tenant: str) -> bool:
        return tenant != OPEN_TENANT and self._of_tenant[tenant] >= self._most // PARTS

    async def _line_up(self, tenant: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._go_on()
        self._watch()
        try:
            async with asyncio.timeout(PATIENCE):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # its turn came with its end
                self._making -= 1
            turn.cancel()
            self._go_on()
            if isinstance(error, TimeoutError):
                message = "Too many answers have not been read by their callers yet; try again in a moment."
                raise LimitExceeded(message, retry_after=SOON) from None
            raise

    def _go_on(self) -> None:
        """Those who may, tenant by tenant, in the order in which they came."""
        passed = 0
        while self._waiting and passed < len(self._waiting):
            tenant = next(iter(self._waiting))
            line = self._waiting.pop(tenant)
            while line and line[0].done():
                line.popleft()
            if line and self._free(tenant):
                line.popleft().set_result(None)
                self._making += 1
                passed = 0
            else:
                passed += 1
            if line:
                self._waiting[tenant] = line

    # --- those who read them -----------------------------------------------------------------------------

    def hold(self, holder: Holder, tenant: str) -> None:
        """Its answer is out, and the peer has not taken all of it."""
        held = self._held[holder] = _Held(tenant, holder.pending, asyncio.get_running_loop().time())
        self._count(held, held.size)

    def release(self, holder: Holder) -> None:
        """It has, or it is gone."""
        held = self._held.pop(holder, None)
        if held is not None:
            self._count(held, -held.size)
            self._go_on()

    def _count(self, held: _Held, size: int) -> None:
        self._total += size
        self._of_tenant[held.tenant] += size
        if not self._of_tenant[held.tenant]:
            del self._of_tenant[held.tenant]

    # --- those who are slow ------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._drop_slow)

    def _drop_slow(self) -> None:
        """Among those whose bytes somebody waits for."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        for holder, held in list(self._held.items()):
            wanted = self._total >= self._most or (held.tenant in self._waiting and self._over(held.tenant))
            if not wanted or now - held.at < LOOK:
                continue
            taken = held.size - holder.pending
            if taken < RATE * (now - held.at):
                holder.drop()
                self.release(holder)
            else:
                self._count(held, -taken)
                held.size, held.at = held.size - taken, now
        self._go_on()
        self._watch()

"""Delivers webhooks. Every gateway and worker runs a WebhookDelivery, so that any of them can be scaled to zero.

Hosts come first, then their entries: a receiver that is down or slow delays only its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import StorageUnavailable
from broker.redis.client import RedisError
from broker.runtime.counters import Count
from broker.runtime.prometheus import Families
from broker.settings.webhook_settings import WebhookSettings
from broker.webhooks.hosts import STEPS, Hosts, step
from broker.webhooks.outbox import Attempt, Entry, Host, Outbox
from broker.webhooks.sender import TIMEOUT, Answer, Sender
from broker.webhooks.signing import Signer

AT_ONCE = 32
PERIOD = 1.0
IN_A_ROW = 20  # entries of one host, until others have a turn
GONE = 410
CLOSE_WITHIN = 5.0  # seconds that a stopping process gives its deliveries
log = logging.getLogger("tokencast.webhooks")


class WebhookDelivery:
    """The deliveries of one process. Without a secret in the settings it delivers nothing."""

    def __init__(
        self,
        outbox: Outbox,
        settings: WebhookSettings,
        *,
        steps: Sequence[float] = STEPS,
        period: float = PERIOD,
        timeout: float = TIMEOUT,
    ) -> None:
        """`steps`: seconds until the next attempt, of an announcement and of a host. `period`: seconds between two
        looks into the outbox. `timeout`: maximum seconds of an attempt. Raises Misconfigured if SSL_CERT_FILE or
        SSL_CERT_DIR cannot be used."""
        self._outbox = outbox
        self._steps = steps
        self._period = period
        self._signers = {tenant: Signer(settings.webhook_secrets_of(tenant)) for tenant in ("", *settings.own_webhooks)}
        allow_private = settings.webhook_allow_private
        self._sender = Sender(allow_private=allow_private, timeout=timeout) if settings.has_webhooks else None
        self._hosts = Hosts(steps)
        self._tasks: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()
        self._left_due = False
        self._closing = False
        self._warned: set[str] = set()
        self.outcomes = Count(dict.fromkeys((("delivered",), ("failed",), ("stopped",), ("abandoned",)), 0))
        """Attempts: delivered, failed and to be repeated, stopped by the receiver (410), failed for the last time."""

    async def run(self) -> None:
        """Deliver until cancelled; survives every error."""
        if self._sender is None:
            await asyncio.Event().wait()
        try:
            while True:
                self._look.clear()
                self._left_due = False
                if not self._closing:
                    await asyncio.gather(*map(self._try_sweep, self._outbox.groups))
                await self._wait()
        finally:
            await cancel_and_wait(self._tasks)
            if self._sender is not None:
                await self._sender.close()

    async def close(self) -> None:
        """Begin no more deliveries, and give those under way a few seconds. The others are due again after their
        lease."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_WITHIN)

    def collect(self, families: Families) -> None:
        """Add this process's metrics."""
        families.counter("tokencast_webhook_deliveries", "Webhook attempts, by outcome.", self.outcomes, ("outcome",))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._period * random.uniform(0.8, 1.2)):
                await self._look.wait()
        except TimeoutError:
            pass

    async def _try_sweep(self, group: str) -> None:
        try:
            await self._sweep(group)
            self._warned.discard(group)
        except StorageUnavailable as error:
            if not self._warned:
                log.warning("webhooks are not delivered: %s", error)
            self._warned.add(group)
        except Exception:
            log.exception("webhooks are not delivered")

    async def _sweep(self, group: str) -> None:
        """Begin deliveries to hosts with due entries, in random order: otherwise the entries of the first shard would
        be all that is ever tried at a host that is down."""
        if self._hosts.busy >= AT_ONCE:
            self._left_due = True
            return
        due = await self._outbox.due_hosts(group)
        random.shuffle(due)
        for host in due:
            room = min(AT_ONCE - self._hosts.busy, self._hosts.room(host.name))
            closed_for = self._hosts.closed_for(host.name)
            if room > 0 or closed_for is not None:
                await self._begin(host, room, closed_for)
            else:
                self._left_due = True

    async def _begin(self, host: Host, room: int, closed_for: float | None) -> None:
        """Take up to `room` entries of a host and begin to deliver them. The room is reserved before: other groups are
        swept meanwhile."""
        begun = 0
        self._hosts.begin(host.name, room)
        try:
            for entry in await self._outbox.take(host, room, closed_for):
                task = asyncio.create_task(self._deliver_in_a_row(entry))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
                begun += 1
        finally:
            self._hosts.end(host.name, room - begun)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._left_due:
            self._look.set()

    async def _deliver_in_a_row(self, first: Entry) -> None:
        """Deliver an entry, and then further due ones of the same host, without looking at the others each time."""
        host = first.host
        try:
            entries = [first]
            for _ in range(IN_A_ROW):
                if not entries:
                    return
                await self._deliver(entries.pop())
                if self._closing or self._hosts.closed_for(host.name) is not None:
                    return
                entries = await self._outbox.take(host, 1, None)
            self._left_due = True
        except (StorageUnavailable, RedisError) as error:  # what was taken is due again after its lease
            log.warning("webhook attempt not recorded: %s", error)
        except Exception:
            log.exception("webhook not delivered")
        finally:
            self._hosts.end(host.name)

    async def _deliver(self, entry: Entry) -> None:
        assert self._sender is not None  # noqa: S101 - nothing is taken without one
        signer = self._signers.get(entry.tenant) or self._signers[""]
        if not signer:  # it is due again after its lease, for a process that has the secret
            log.warning("%s: webhook not delivered: this process has no secret for its tenant", entry.gid)
            return
        at, began = time.time(), time.monotonic()
        headers = signer.headers(entry.message_id, entry.body, int(at))
        answer = await self._sender.post(entry.url, headers, entry.body)
        seconds = time.monotonic() - began
        if answer.host_failed:
            self._hosts.failed(entry.host.name, began, answer.retry_after)
        else:
            self._hosts.succeeded(entry.host.name)
        retry_in = self._retry_in(entry, answer)
        attempt = Attempt(round(at, 3), round(seconds, 3), answer.status, answer.error)
        result = await self._outbox.record(entry, attempt, retry_in, self._hosts.closed_for(entry.host.name))
        self._note(entry, answer, result, seconds)

    def _retry_in(self, entry: Entry, answer: Answer) -> float | None:
        """Return the seconds until the next attempt; None if there is none."""
        if answer.error is None or answer.status == GONE:
            return None
        wait = step(self._steps, entry.tries + 1) * random.uniform(1.0, 1.1)
        return max(wait, answer.retry_after or 0.0)

    def _note(self, entry: Entry, answer: Answer, result: str, seconds: float) -> None:
        """Count and log an attempt. Of the URL only the host is logged: the rest of it may be a secret."""
        outcome = "delivered" if answer.error is None else "stopped" if answer.status == GONE else "failed"
        if result == "OVER":
            outcome = "abandoned"
        self.outcomes[(outcome,)] += 1
        level = logging.INFO if answer.error is None else logging.WARNING
        said = answer.status or answer.error
        receiver = urlsplit(entry.url).hostname or ""
        log.log(level, "%s: webhook %s (%s) by %s in %.2f s", entry.gid, outcome, said, receiver, seconds)

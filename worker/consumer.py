"""Pulls the tickets that can run now, and runs them as arq jobs. The only module of the worker that imports arq.

A pull moves tickets from the waiting ones to arq's queue, together with the places that their calls need. The arq job
claims the generation, starts a task of the worker and returns at once: arq's queue holds only granted tickets, and its
handling of jobs that run for minutes never applies. A granted ticket whose worker died is found by the next poll.
`tests/integration/broker/queue/test_arq_contract.py` has a test for each behaviour of arq that this module relies on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from arq import Retry
from arq.connections import ArqRedis
from arq.worker import Worker, func

from broker.concurrency.backoff import Backoff, LogThrottle
from broker.errors import GenerationNotFound, StorageUnavailable
from broker.ids import check_id, created_ms
from broker.queue import commands
from broker.queue.commands import Pulled, Ticket
from broker.queue.tickets import JOB_NAME, Queue, deserialize, serialize, upstream_limits
from broker.redis.client import Redis, open_pool, topology_of, without_password
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError, describe_error, forbidden_command
from broker.settings.settings import Settings
from broker.store import commands as store_commands
from broker.store import keys
from worker.appender import Appender
from worker.claims import CLAIM_TIMEOUT, Claim, claim
from worker.slots import Slots

JOB_TIMEOUT = 10.0 + CLAIM_TIMEOUT  # seconds; Redis may execute an aborted claim, and then nothing runs the generation
BELL_BLOCK = 5.0  # seconds
SHORTEST_BLOCK = 0.01  # seconds; BLPOP blocks without end at 0, and pulls must not follow each other without a pause
MOST_PULLED = 8  # tickets of one pull, which blocks Redis for up to a millisecond
BELL_TIMEOUT = 10.0  # seconds; socket timeout, above the block
STOP_TIMEOUT = 3.0  # seconds, if Redis is unreachable
log = logging.getLogger("tokencast.worker")


class TicketWorker(Worker):
    """arq's worker, limited to the number of free slots. One lock covers the poll and the bell."""

    def __init__(self, consumer: Consumer, pool: ArqRedis, settings: Settings) -> None:
        super().__init__(
            [func(consumer.run_job, name=JOB_NAME)],
            queue_name=keys.READY,
            redis_pool=pool,
            handle_signals=False,
            max_jobs=settings.slots,
            job_timeout=JOB_TIMEOUT,
            keep_result=0,
            max_tries=1000,  # attempts are limited by claim.lua instead
            poll_delay=1,  # seconds; the bell announces sooner what can run
            health_check_key=keys.WORKER_HEALTH,
            job_serializer=serialize,
            job_deserializer=deserialize,
            log_results=False,
            after_job_end=consumer.after_job,
        )
        # Seconds that a ticket waits if its worker died before the claim; arq's default is `job_timeout` plus ten. A
        # second worker that takes the ticket while the first one is alive finds the generation claimed.
        self.in_progress_timeout_s = settings.lease
        self._consumer = consumer
        self._lock = asyncio.Lock()
        self._failed = asyncio.Event()

    async def main(self) -> None:
        """arq's polling loop without its initial INFO, which would fail forever without the right to call it. A failed
        `poll_now` ends the loop, as an error of the poll does."""
        while not self._failed.is_set():
            await self._poll_iteration()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_delay_s):
                    await self._failed.wait()

    async def pull_now(self) -> float | None:
        """Pull at once instead of after the delay. Return the seconds until something may change; an error ends the
        loop."""
        try:
            async with self._lock:
                return await self._pull()
        except Exception as error:
            self._consumer.report_failure(error)
            self._failed.set()
            return None

    async def _poll_iteration(self) -> None:
        async with self._lock:
            free = self._consumer.free_slots(self)
            self.allow_pick_jobs = free > 0
            self.queue_read_limit = max(free, 1)
            await super()._poll_iteration()
            await self._pull()
        if free > 0:
            self._consumer.report_success()

    async def _pull(self) -> float | None:
        wait: float | None = None
        while (most := min(self._consumer.free_slots(self), MOST_PULLED)) > 0:
            pulled = await self._consumer.pull(most)
            try:
                await self.start_jobs(list(pulled.tickets))
            finally:
                self._forget_skipped(pulled.tickets)
            if len(pulled.tickets) < most:
                wait = None if pulled.wait_ms is None else pulled.wait_ms / 1000
                break
        return wait

    def _forget_skipped(self, tickets: Sequence[bytes]) -> None:
        """Forget the pulled tickets whose jobs do not begin: arq skips one that has been withdrawn meanwhile."""
        for ticket in tickets:
            name = ticket.decode(errors="replace")
            if (task := self.tasks.get(name)) is not None:
                task.add_done_callback(lambda _, name=name: self._consumer.granted.discard(name))
            else:
                self._consumer.granted.discard(name)

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Remove tickets whose names are not ASCII, then start the jobs. Such a name would end arq's loop and remain
        at the head of the queue."""
        texts = [job_id for job_id in job_ids if job_id.isascii()]
        if len(texts) < len(job_ids):
            await self.pool.zrem(self.queue_name, *(job_id for job_id in job_ids if not job_id.isascii()))
        await super().start_jobs(texts)

    @property
    def starting(self) -> set[str]:
        """Tickets whose jobs have not returned."""
        return {ticket for ticket, task in self.tasks.items() if not task.done()}

    async def stop(self) -> None:
        """Stop between two polls. A stop during a poll would leave a ticket that is not queued and not running until
        its in-progress key expires."""
        async with self._lock:
            if self.main_task is not None:
                self.main_task.cancel()

    async def wait_jobs(self) -> None:
        """Wait until the jobs have returned; none takes longer than its `job_timeout`."""
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


class Consumer:
    """Takes tickets from the queue and starts their generations, which continue if the queue's Redis fails."""

    def __init__(
        self,
        store: Redis,
        queue: Queue,
        slots: Slots,
        appender: Appender,
        settings: Settings,
        on_exhausted: Callable[[str], None],
        on_expired: Callable[[str], None],
    ) -> None:
        """Callbacks with the id of a generation that this worker ended: its attempts are used up, or its waiting lasted
        too long."""
        self._store = store
        self._queue = queue
        self._upstreams = upstream_limits(settings)
        self._own_limits = queue.quotas.limits.encode_own()
        self.granted: set[str] = set()
        """Tickets that this process has pulled and not started."""
        self._on_exhausted = on_exhausted
        self._on_expired = on_expired
        self._slots = slots
        self._appender = appender
        self._settings = settings
        self._worker: TicketWorker | None = None
        self._stopping = False
        self._backoff = Backoff(0.1)
        self._log_throttle = LogThrottle()

    def report_failure(self, error: Exception) -> None:
        """Log that the queue's Redis does not respond or rejects a command."""
        where = without_password(self._settings.redis_url)
        self._log_throttle.tell(log, f"the queue at {where}: {describe_error(error)}")

    def report_success(self) -> None:
        """Reset the backoff and the log throttle: the queue's Redis responded."""
        if self._backoff.failing:
            self._backoff.success()
            self._log_throttle.over()

    def free_slots(self, worker: TicketWorker) -> int:
        """Return the number of free slots; 0 while the logs' Redis is unreachable, because claims would fail."""
        if self._stopping or not self._appender.connected:
            return 0
        return self._slots.free(worker.starting)

    async def pull(self, most: int) -> Pulled:
        """Pull up to `most` tickets. Raises StorageUnavailable."""
        places, settings = self._slots.places, self._settings
        pulled = await commands.pull(
            self._queue.redis,
            most,
            lease_ms=int(settings.lease * 1000),
            born=places.born,
            tenant_running=settings.tenant_running,
            other_tenants=self._own_limits,
            ageing_ms=int(settings.queue_ageing * 1000),
            upstreams=[one._replace(paused=places.is_paused(one.resource)) for one in self._upstreams],
        )
        places.note_born(pulled.born)
        self.granted.update(ticket.decode() for ticket in pulled.tickets)
        if pulled.misplaced:
            await self._place(pulled.misplaced)
        return pulled

    async def _place(self, tickets: Sequence[Ticket]) -> None:
        """Put tickets into the lanes of their models. If this worker cannot call an upstream of the lane, and no other
        worker has for a minute, it runs and fails them."""
        callable_here = {one.resource for one in self._upstreams}
        models = await self._store.pipeline([("HGET", keys.meta(ticket.gid), "md") for ticket in tickets])
        for ticket, model in zip(tickets, models, strict=True):
            lane = self._settings.lane_of((model or b"").decode())
            if callable_here.isdisjoint(lane.split(",")):
                lane = self._upstreams[0].resource
            await self._queue.offer(ticket._replace(lane=lane))

    async def run_job(
        self,
        ctx: dict[str, Any],
        gid: str,
        tenant: str,
        resource: str,
        lane: str,
        priority: int,
        tokens: int,
        has_new_place: bool,
    ) -> None:
        """The arq job of a granted ticket: claim the generation and start its task. `has_new_place`: the generation had
        none at this upstream before."""
        places, ticket = self._slots.places, ctx["job_id"]
        just_granted = ticket in self.granted
        self.granted.discard(ticket)
        try:
            if not just_granted and not await places.is_held(check_id(gid), resource):
                number = int(ticket.rpartition(".r")[2])
                ctx["returned"] = Ticket(gid, tenant, number, lane, priority, tokens, created_ms(gid))
                return
            known = places.of(gid)
            if known is None:
                places.add(gid, tenant, resource, tokens)
            outcome = await claim(self._store, gid, self._settings, resource, is_wanted=lambda: not self._stopping)
        except GenerationNotFound:
            return
        except StorageUnavailable:
            places.forget(gid)
            raise Retry from None  # at the next poll; `defer` would put this machine's clock into the ticket's score
        if isinstance(outcome, Claim):
            self._slots.start(ticket, outcome)
        elif outcome == "RUNNING":  # a second ticket; the running attempt has a place of its own
            if known is None:
                places.give_up(gid) if has_new_place else places.forget(gid)
        else:
            places.end_soon(gid, "none")
            await self._note_refused(gid, outcome)

    async def _note_refused(self, gid: str, outcome: str) -> None:
        if outcome == "EXHAUSTED":
            self._on_exhausted(gid)
        elif outcome == "NONE":
            log.warning("%s: not in the logs' Redis; gateways and workers must use the same one", gid)
        elif outcome == "LATE":
            with suppress(StorageUnavailable):  # the reaper does it too
                if await store_commands.expire(self._store, gid):
                    self._on_expired(gid)

    async def after_job(self, ctx: dict[str, Any]) -> None:
        """Called by arq after it removed the ticket: return it to the waiting ones if its place had ended."""
        if "returned" in ctx:
            with suppress(StorageUnavailable):  # the reaper recovers it
                await self._queue.offer(ctx["returned"])

    async def run(self) -> None:
        """Run until cancelled or stopped."""
        await self._appender.ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll_forever())
            tasks.create_task(self._listen_forever())

    async def stop(self) -> None:
        """Stop taking tickets."""
        self._stopping = True
        worker = self._worker
        if worker is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await worker.stop()
                    await worker.wait_jobs()

    async def _poll_forever(self) -> None:
        """Restart arq's loop, which ends at any error of Redis, with a new arq worker: the old one's count of free
        slots leaks if the error occurred between taking a slot and starting the job."""
        url = self._settings.redis_url
        redis = open_pool(url, max_connections=self._settings.slots + 8)
        pool = ArqRedis(redis.client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
        try:
            while not self._stopping:
                try:
                    await self._poll(pool)
                except Exception as error:
                    self.report_failure(error)
                await self._backoff.wait()
        finally:
            await redis.close()

    async def _poll(self, pool: ArqRedis) -> None:
        worker = self._worker = TicketWorker(self, pool, self._settings)
        try:
            await worker.async_run()
        except asyncio.CancelledError:
            if not self._stopping:  # otherwise `stop` cancelled it
                raise
        finally:
            self._worker = None
            await worker.wait_jobs()

    async def _listen_forever(self) -> None:
        backoff, servers = Backoff(0.1), topology_of(self._settings.redis_url)
        while not self._stopping:
            try:
                connection = await servers.open()
                try:
                    await self._listen(connection, backoff)
                finally:
                    connection.close()
            except (OSError, RespError) as error:
                if forbidden_command(error) is not None:  # the poll reports other errors
                    self.report_failure(error)
                await backoff.wait()

    async def _listen(self, connection: RespConnection, backoff: Backoff) -> None:
        """Pull at each ring of the bell, which tells that something may run; the pull decides what. Without a free slot
        the bell is not read, and the first slot that becomes free causes a pull."""
        due, wait = True, None  # whether to pull at once; seconds until something may change
        while not self._stopping:
            worker = self._worker
            if worker is None or self.free_slots(worker) <= 0:
                await self._slots.wait_changed(timeout=1.0)
                due = True
            elif due:
                due, wait = False, await worker.pull_now()
            else:
                rung = await connection.call("BLPOP", keys.BELL, f"{bell_block(wait):.3f}", timeout=BELL_TIMEOUT)
                backoff.success()
                due = bool(rung) or wait is not None


def bell_block(wait: float | None) -> float:
    """Return the seconds for which the bell is awaited. `wait`: seconds until something may change, None if unknown.
    The jitter keeps workers apart that wait for the same time."""
    if wait is None:
        return BELL_BLOCK
    return min(BELL_BLOCK, max(SHORTEST_BLOCK, wait) + random.uniform(0, 0.05))

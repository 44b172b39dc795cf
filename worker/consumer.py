"""Takes tickets out of arq's queue. The only file of the worker that knows arq.

An arq job here claims the generation, starts our own task and returns at once: arq then removes the ticket within
milliseconds, so its queue holds only what waits, and none of what it does to jobs that run for minutes can happen.
`tests/integration/broker/queue/test_arq_contract.py` has a test for each thing of arq's that this relies on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from arq import Retry
from arq.connections import ArqRedis
from arq.worker import Worker, func

from broker.concurrency.backoff import Backoff, LogThrottle
from broker.errors import GenerationNotFound, StorageUnavailable
from broker.ids import check_id
from broker.queue.tickets import JOB_NAME, deserialize, serialize
from broker.redis.client import Redis, open_pool, topology_of, without_password
from broker.redis.connection import RespConnection
from broker.redis.errors import RespError, describe_error, forbidden_command
from broker.settings.settings import Settings
from broker.store import keys
from worker.appender import Appender
from worker.claims import PATIENCE, Claim, claim
from worker.slots import Slots

JOB_TIMEOUT = 10.0 + PATIENCE  # seconds; a claim that is cut off may be executed, and then nobody runs it
BELL_BLOCK = 5  # seconds
BELL_TIMEOUT = 10.0  # of the socket: above the block
STOP_WITHIN = 3.0  # seconds, where Redis is away
log = logging.getLogger("tokencast.worker")


class TicketWorker(Worker):
    """arq's worker that takes only as many tickets as there are free slots. One lock for the poll and the bell."""

    def __init__(self, picker: Consumer, pool: ArqRedis, settings: Settings) -> None:
        super().__init__(
            [func(picker.begin, name=JOB_NAME)],
            queue_name=keys.QUEUE,
            redis_pool=pool,
            handle_signals=False,
            max_jobs=settings.slots,
            job_timeout=JOB_TIMEOUT,
            keep_result=0,
            max_tries=1000,  # the budget is ours
            poll_delay=1,  # the bell is what is quick
            health_check_key=keys.WORKER_HEALTH,
            job_serializer=serialize,
            job_deserializer=deserialize,
            log_results=False,
            after_job_end=picker.after,
        )
        # For so long a ticket waits whose worker died before the claim; arq would say `job_timeout` and ten seconds.
        # Who takes it again while its first worker still lives finds the generation claimed.
        self.in_progress_timeout_s = settings.lease
        self._picker = picker
        self._lock = asyncio.Lock()
        self._broken = asyncio.Event()

    async def main(self) -> None:
        """As arq's own, which first asks INFO: where that is not allowed, it would never get further. A `look` that
        broke off ends it as an error of its own does."""
        while not self._broken.is_set():
            await self._poll_iteration()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_delay_s):
                    await self._broken.wait()

    async def look(self) -> None:
        """Takes what is there, now."""
        try:
            await self._poll_iteration()
        except Exception as error:
            self._picker.troubled(error)
            self._broken.set()

    async def _poll_iteration(self) -> None:
        async with self._lock:
            free = self._picker.free(self)
            self.allow_pick_jobs = free > 0
            self.queue_read_limit = max(free, 1)
            await super()._poll_iteration()
        if free > 0:
            self._picker.polled()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Over a name that is no text arq's loop would end, and find it at the queue's head again, for ever."""
        texts = [job_id for job_id in job_ids if job_id.isascii()]
        if len(texts) < len(job_ids):
            await self.pool.zrem(self.queue_name, *(job_id for job_id in job_ids if not job_id.isascii()))
        await super().start_jobs(texts)

    @property
    def starting(self) -> set[str]:
        """Tickets whose job has not returned."""
        return {ticket for ticket, task in self.tasks.items() if not task.done()}

    async def stop(self) -> None:
        """Never in the middle of a poll: that would leave a ticket that is neither queued nor running until its
        in-progress key is gone."""
        async with self._lock:
            if self.main_task is not None:
                self.main_task.cancel()

    async def finished(self) -> None:
        """The jobs have returned; none takes longer than its `job_timeout`."""
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


class Consumer:
    """`run` for ever; generations that were started live on, whatever becomes of the queue's Redis."""

    def __init__(
        self,
        store: Redis,
        running: Slots,
        appender: Appender,
        settings: Settings,
        exhausted: Callable[[str], None],
    ) -> None:
        """`exhausted` is told of a generation that a claim has ended, since it was started too often."""
        self._store = store
        self._exhausted = exhausted
        self._running = running
        self._appender = appender
        self._settings = settings
        self._worker: TicketWorker | None = None
        self._stopping = False
        self._polling = Backoff(0.1)
        self._troubles = LogThrottle()

    def troubled(self, error: Exception) -> None:
        """The queue does not answer, or refuses."""
        where = without_password(self._settings.redis_url)
        self._troubles.tell(log, f"the queue at {where}: {describe_error(error)}")

    def polled(self) -> None:
        """The queue answers."""
        if self._polling.failing:
            self._polling.success()
            self._troubles.over()

    def free(self, worker: TicketWorker) -> int:
        """None while the logs' Redis is away: a ticket taken then could not be claimed."""
        if self._stopping or not self._appender.connected:
            return 0
        return self._running.free(worker.starting)

    async def begin(self, ctx: dict[str, Any], gid: str, tenant: str) -> None:
        """The arq job."""
        places = self._running.places
        try:
            if not await places.take(check_id(gid), tenant):
                ctx["parked"] = gid, tenant
                return
            outcome = await claim(self._store, gid, self._settings, wanted=lambda: not self._stopping)
        except GenerationNotFound:
            return
        except StorageUnavailable:
            raise Retry from None  # at the next poll; `defer` would put this machine's clock into the ticket's fair tag
        if isinstance(outcome, Claim):
            self._running.start(ctx["job_id"], outcome)
        elif outcome != "RUNNING":  # then the place is that one's
            places.leave(gid, tenant)
            if outcome == "EXHAUSTED":
                self._exhausted(gid)
            elif outcome == "NONE":
                log.warning("%s: unknown to the logs' Redis; the gateways must have the same one", gid)

    async def after(self, ctx: dict[str, Any]) -> None:
        """arq's own end of the job: it has forgotten the ticket."""
        if "parked" in ctx:
            gid, tenant = ctx["parked"]
            await self._running.places.park(gid, tenant, ctx["job_id"])

    async def run(self) -> None:
        """Until cancelled or stopped."""
        await self._appender.ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll_for_ever())
            tasks.create_task(self._listen_for_ever())

    async def stop(self) -> None:
        """No ticket is taken after this."""
        self._stopping = True
        worker = self._worker
        if worker is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_WITHIN):
                    await worker.stop()
                    await worker.finished()

    async def _poll_for_ever(self) -> None:
        """arq ends its loop at any error of Redis. This begins another one, with a new worker: the old one's count
        of free slots leaks where the error came between taking a slot and starting the job."""
        url = self._settings.redis_url
        redis = open_pool(url, max_connections=self._settings.slots + 8)
        pool = ArqRedis(redis.client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
        try:
            while not self._stopping:
                try:
                    await self._poll(pool)
                except Exception as error:
                    self.troubled(error)
                await self._polling.wait()
        finally:
            await redis.close()

    async def _poll(self, pool: ArqRedis) -> None:
        worker = self._worker = TicketWorker(self, pool, self._settings)
        try:
            await worker.async_run()
        except asyncio.CancelledError:
            if not self._stopping:  # else it was `stop`
                raise
        finally:
            self._worker = None
            await worker.finished()

    async def _listen_for_ever(self) -> None:
        backoff, servers = Backoff(0.1), topology_of(self._settings.redis_url)
        while not self._stopping:
            try:
                connection = await servers.open()
                try:
                    await self._listen(connection, backoff)
                finally:
                    connection.close()
            except (OSError, RespError) as error:
                if forbidden_command(error) is not None:  # else the poll says what is wrong
                    self.troubled(error)
                await backoff.wait()

    async def _listen(self, connection: RespConnection, backoff: Backoff) -> None:
        """The bell says that something is in the queue, not what: which tickets are next is for their fair tags to
        say. Without a free slot nobody listens; the first one that gets free looks without being called."""
        full = True
        while not self._stopping:
            worker = self._worker
            if worker is None or self.free(worker) <= 0:
                full = True
                await self._running.changed(within=1.0)
            elif full:
                full = False
                await worker.look()
            else:
                rung = await connection.call("BLPOP", keys.BELL, BELL_BLOCK, timeout=BELL_TIMEOUT)
                backoff.success()
                if rung:
                    await worker.look()

"""Gateways and workers of the model: the real code in one event loop, stepped by the model.

Real: the application with its routes, broker, hub, reader, appender, generation runner and hand-over. Replaced: the
parts that act on their own or wait, which are the connection loops of appender and reader (stepped here, with replies
that can be lost), arq (granted tickets are taken from its queue directly), the upstream, and the HTTP server (the
application is called through ASGI).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import hiredis

from api.app import create_app
from broker import Broker
from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.events import CHUNK, GapFound
from broker.fanout.reader import LogReader
from broker.fanout.reader_pool import IDLE_AFTER
from broker.ids import Cursor
from broker.queue.quotas import TenantLimits
from broker.queue.tickets import Queue
from broker.redis.client import Pool, Redis
from broker.redis.errors import RespError
from broker.settings.settings import Settings
from broker.store import commands
from broker.store.commands import APPENDER_SCRIPTS
from tests.model.oracle import ChatReader, NativeReader
from tests.model.storage import Storage
from worker import claims
from worker.appender import RESTORING, Appender, Call
from worker.attempt import Attempt, AttemptEnded
from worker.claims import Claim
from worker.generate import GenerationRunner
from worker.hand_back import HandBack
from worker.places import Places
from worker.slots import Slots
from worker.upstream.chunks import Chunk
from worker.upstream.errors import UpstreamError


class CountedRedis(Pool):
    """Counts pending commands. The model is idle when there are none."""

    busy = 0

    async def _counted(self, work: Any) -> Any:
        self.busy += 1
        try:
            return await work
        finally:
            self.busy -= 1

    async def execute(self, *command: Any) -> Any:
        return await self._counted(super().execute(*command))

    async def pipeline(self, commands: Any) -> Any:
        return await self._counted(super().pipeline(commands))

    async def run(self, script: Any, keys: Any, args: Any) -> Any:
        return await self._counted(super().run(script, keys, args))


# --- gateways ---------------------------------------------------------------------------------------------------


class _SecondRead(Exception):
    pass


class _SingleRead:
    """A connection for a single, non-blocking XREAD."""

    node = ("", 0)

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._used = False

    async def is_master(self) -> bool:
        return True

    def begin(self, packed: bytes, count: int, *, timeout: float) -> asyncio.Future[list[Any]]:
        if self._used:
            raise _SecondRead
        self._used = True
        return asyncio.ensure_future(self._reply(packed))

    async def _reply(self, packed: bytes) -> list[Any]:
        parser = hiredis.Reader()
        parser.feed(packed)
        name, *arguments = parser.gets()
        at = arguments.index(b"BLOCK")
        return [await self._redis.execute(name.decode(), *arguments[:at], *arguments[at + 2 :])]


class SteppedReader(LogReader):
    """The real reader, without the loop that connects and blocks."""

    async def run(self) -> None:
        pass

    async def read_once(self) -> None:
        with suppress(_SecondRead):
            await self._read(_SingleRead(self._redis))  # pyright: ignore


class Connection:
    """One request, in flight or answered. `received` is the data since the last check."""

    def __init__(self, app: Any, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> None:
        path, _, query = path.partition("?")
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": raw,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "extensions": {},
        }
        self._request: dict[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}
        self._disconnected = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self.status = 0
        self.received: list[bytes] = []
        self.complete = False
        self.task: asyncio.Task[None] = asyncio.get_running_loop().create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._request is not None:
            request, self._request = self._request, None
            return request
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        await self._reading.wait()
        if message.get("body"):
            self.received.append(message["body"])
        self.complete = not message.get("more_body", False)

    @property
    def stuck(self) -> bool:
        return not self._reading.is_set()

    def stall(self) -> None:
        """The peer stops reading."""
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    async def leave(self) -> None:
        self._disconnected.set()
        self._reading.set()
        await asyncio.gather(self.task, return_exceptions=True)

    def take(self) -> bytes:
        data = b"".join(self.received)
        self.received.clear()
        return data

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.received))


class Follower:
    """A client that follows a generation over several connections."""

    def __init__(self, number: int, gid: str, kind: str) -> None:
        self.number = number
        self.gid = gid
        self.kind = kind  # native | latest | chat | python
        self.reader: Any = ChatReader() if kind == "chat" else NativeReader(latest=kind == "latest")
        self.connection: Any = None
        self.gateway: Gateway | None = None
        self.era = 0
        self.done = False

    def connect(self, gateway: Gateway) -> None:
        self.reader.connect()
        self.gateway = gateway
        if self.kind == "python":
            self.connection = Following(gateway, self)
        elif self.kind == "chat":
            self.connection = Connection(gateway.app, f"/v1/chat/completions/{self.gid}?stream=true")
        else:
            headers = {"last_event_id": self.reader.last_id} if self.reader.last_id else {}
            query = "?after=latest" if self.kind == "latest" else ""
            self.connection = Connection(gateway.app, f"/v1/generations/{self.gid}/events{query}", **headers)

    def __repr__(self) -> str:
        return f"<follower {self.number}, {self.kind}>"


class Following:
    """`broker.follow`, as a Python program uses it."""

    stuck = False

    def __init__(self, gateway: Gateway, follower: Follower) -> None:
        self.status = 200
        self.complete = False
        self._broker, self._reader, self._gid = gateway.broker, follower.reader, follower.gid
        self._events: list[tuple[str | None, str, str]] = []
        self.task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        after = Cursor(*self._reader.position)
        try:
            async for event in self._broker.follow(self._gid, after):
                self._events.append((str(event.cursor), event.name, event.data.decode()))
        except GapFound as gap:
            gap_data = {"requested": gap.requested, "earliest": gap.found, "latest": gap.found}
            self._events.append((None, "gap", json.dumps({name: str(at) for name, at in gap_data.items()})))
            self._events.append((None, "retry", ""))
        except GenerationGone:
            self.status = 410
        except GenerationNotFound:
            self.status = 404
        except BrokerError:
            self._events.append((None, "retry", ""))
        self.complete = True

    def take(self) -> bytes:
        for cursor, name, data in self._events:
            if name == "retry":
                self._reader.asked_to_reconnect = True
            else:
                self._reader.history.append(f"{name} {cursor} {data[:100]}")
                self._reader.event(cursor, name, data)
        self._events.clear()
        return b""

    def stall(self) -> None:
        pass

    def resume(self) -> None:
        pass

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Gateway:
    """A gateway process without a server: its application and its hub, stepped by the model."""

    def __init__(self, redis: CountedRedis, settings: Settings, cache_bytes: int) -> None:
        self.broker = Broker(redis, redis, settings.model_copy(update={"cache_bytes": cache_bytes}))
        self.app = create_app(self.broker)

    @property
    def hub(self) -> Any:
        return self.broker.hub

    def read_tasks(self) -> list[asyncio.Task[None]]:
        """Tasks for one read of each reader. A reader without logs waits."""
        loop = asyncio.get_running_loop()
        return [loop.create_task(reader.read_once()) for reader in self.hub._readers if len(reader)]

    def age_epochs(self, earlier: Callable[[bytes], bytes]) -> None:
        """An epoch contains the time of its creation, and the model's time has advanced."""
        known: dict[str, bytes | None] = self.broker.store.data_loss._epochs  # pyright: ignore
        known.update({shard: earlier(epoch) for shard, epoch in known.items() if epoch is not None})

    async def pass_idle_time(self) -> None:
        """Simulate a heartbeat interval without events."""
        self.hub.tick += 1000
        for _ in range(IDLE_AFTER):
            self.hub._readers.rebalance()
        await self.hub._check_idle()


# --- workers ----------------------------------------------------------------------------------------------------


class Sender:
    """The appender without its connection: one iteration of `ShardAppender._connect_and_serve` in three steps, between
    which anything can happen."""

    def __init__(self, appender: Appender, storage: Storage) -> None:
        (self._shard,) = appender._shards.values()  # pyright: ignore
        self._storage = storage
        self.calls: list[Call] | None = None
        self.replies: list[Any] | None = None
        self.reconnecting = True

    @property
    def idle(self) -> bool:
        shard = self._shard
        return self.calls is None and not shard._waiting and not shard._restoring and not self.reconnecting

    def gather(self, *, touch: bool) -> None:
        if self.reconnecting:
            self.reconnecting = False
            self._shard.connected.set()
            self._shard._resend_endings()
        if touch:
            self._shard._touch_due = True
            for attempt in self._shard._active:
                attempt.replied_at = attempt.touched_at = -1e9
        self.calls = self._shard._collect_calls() or None

    def settle(self) -> None:
        assert self.calls is not None
        assert self.replies is not None
        calls, replies, self.calls, self.replies = self.calls, self.replies, None, None
        refusal = self._shard._process_replies(calls, replies)
        if refusal is not None:
            if refusal.kind == "NOSCRIPT":
                load_scripts(self._storage)
            else:
                self.break_off()

    def renew_calls(self) -> None:
        """Collected calls contain an epoch, and the model's time has advanced."""
        if self.calls is not None and self.replies is None:
            self.calls = [
                call._replace(command=self._shard._restore_command(call.attempt)) if call.last == RESTORING else call
                for call in self.calls
            ]

    def break_off(self) -> list[Call]:
        """Drop the connection and the replies in flight. Returns the calls that can still arrive."""
        late = self.calls if self.calls is not None and self.replies is None else None
        self.calls = self.replies = None
        self.reconnecting = True
        return late or []

    def expire_ended_attempts(self) -> None:
        self._shard._ended_attempts.expire(float("inf"))


def load_scripts(storage: Storage) -> None:
    for script in APPENDER_SCRIPTS:
        storage.call("SCRIPT", "LOAD", script.source)


class Run:
    """One attempt and its upstream call. The text sent by the upstream is the truth."""

    def __init__(self, number: int, attempt: Attempt) -> None:
        self.number = number
        self.attempt = attempt
        self.sent = 0
        self.over = False
        self.completes = False
        self.finished = False  # no finish reason before the end
        self.rate_limits = None
        self._replies: asyncio.Queue[Any] = asyncio.Queue()

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> list[Chunk]:
        reply = await self._replies.get()
        if reply is None:
            raise StopAsyncIteration
        if isinstance(reply, UpstreamError):
            raise reply
        return reply

    def send(self, count: int) -> None:
        chunks: list[Chunk] = []
        for _ in range(count):
            choice = {"index": 0, "delta": {"content": f"{self.number}.{self.sent} "}, "finish_reason": None}
            chunks.append(Chunk(CHUNK, json.dumps({"choices": [choice]}).encode(), 1, (), None))
            self.sent += 1
        self._replies.put_nowait(chunks)

    def complete(self) -> None:
        self.over = self.completes = True
        self._replies.put_nowait(None)

    def refuse(self, *, busy: bool) -> None:
        """The upstream refuses the call, or fails before the first token."""
        self.over = True
        code = "upstream_rate_limited" if busy else "upstream_error"
        retry_after = 0.0 if busy else None
        self._replies.put_nowait(UpstreamError(code, "Not now.", retryable=True, retry_after=retry_after))

    def fail(self) -> None:
        self.over = True
        self._replies.put_nowait(UpstreamError("upstream_truncated", "The upstream's stream ended too early."))


class RecordingAppender(Appender):
    """Records the newest attempt, which is the next to call the upstream."""

    newest: Attempt | None = None

    def open(self, claim: Claim) -> Attempt:
        self.newest = super().open(claim)
        return self.newest


class ScriptedUpstreams:
    """Replaces worker.upstream.Upstreams."""

    def __init__(self, appender: RecordingAppender, on_open: Callable[[Attempt], Run]) -> None:
        self._appender = appender
        self._start_run = on_open

    @asynccontextmanager
    async def open(self, model: str, body: Any, resource: str) -> AsyncGenerator[Run]:
        assert self._appender.newest is not None
        yield self._start_run(self._appender.newest)


class Worker:
    """A worker process, without arq."""

    def __init__(self, redis: CountedRedis, storage: Storage, settings: Settings, number: Callable[[], int]) -> None:
        self._redis = redis
        self._settings = settings
        self._number = number
        self.awake = True
        self.runs: list[Run] = []
        appender = RecordingAppender(settings)
        self.sender = Sender(appender, storage)
        upstreams: Any = ScriptedUpstreams(appender, self._start_run)
        places = Places(redis, TenantLimits(), "worker")
        hand_back = HandBack(redis, Queue(redis), places)
        self._runner = GenerationRunner(redis, appender, upstreams, places, hand_back, settings)
        self.running = Slots(self._runner, places, hand_back, 1000)

    def _start_run(self, attempt: Attempt) -> Run:
        run = Run(self._number(), attempt)
        self.runs.append(run)
        return run

    @property
    def busy(self) -> list[Run]:
        """Runs whose upstream call is still open."""
        return [run for run in self.runs if not run.over and run.attempt.ended is None]

    async def take(self, ticket: str) -> str:
        """Run the job of a ticket, as arq does."""
        gid = ticket.partition(".")[0]
        self.running.places.add(gid, "default", "default", 0)
        outcome = await claims.claim(self._redis, gid, self._settings, "default")
        if isinstance(outcome, Claim):
            self.running.start(ticket, outcome)
            return "OK"
        if outcome == "LATE":
            await commands.expire(self._redis, gid)
        return outcome

    async def begin(self, run: Run) -> None:
        """Begin an attempt whose upstream has answered, and keeps its first token for long."""
        with suppress(AttemptEnded):
            await self._runner._begin(run.attempt)  # pyright: ignore

    async def hand_over(self) -> None:
        await self.running.hand_over()

    async def crash(self) -> None:
        tasks = list(self.running._tasks)  # pyright: ignore
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_error(reply: Any) -> bool:
    return isinstance(reply, RespError)

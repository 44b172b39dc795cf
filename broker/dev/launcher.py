"""`tokencast dev`: everything on this machine, in one go and for as long as this process lives.

Redis, the simulated upstream where no other is set, a worker and a gateway, each a process in a session of its own, so
that Ctrl-C reaches only this one, which ends them in order. If it is itself killed, they die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import shlex
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import click
import httpx2

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.errors import Misconfigured, StorageUnavailable
from broker.redis.client import Redis, connect_redis, without_password
from broker.redis.errors import configuration_error
from broker.runtime.child_process import die_with_parent
from broker.runtime.environment import environment
from broker.runtime.process import python_module
from broker.settings.settings import SIMULATED_KEY, ClientSettings, Settings, load, load_for_process, unknown_variables
from broker.store import keys
from broker.store.preflight import mark_embedded

SIMULATED_MODEL = "gabforge-coder"
_SIMULATED_MODELS = f"{SIMULATED_MODEL},sim,sim-*"
_READY_WITHIN = 30.0  # seconds; one or two are usual
_LOOK_EVERY = 0.02
_DRAIN = "0.5"  # over which the gateway ends its streams: their readers have nowhere else to go
_END_WITHIN = 1.0  # from one signal to the next, at last SIGKILL
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a gateway that listens everywhere is reached


def run() -> int:
    """Returns the exit code. Misconfigured where the environment does not allow a start; then nothing runs."""
    settings = load_for_process()
    load(ClientSettings)  # its key is needed once everything runs
    for remark in unknown_variables().values():
        click.echo(f"tokencast: {remark}", err=True)
    simulated = not (settings.openai_api_key or settings.openai_base_url or settings.upstreams)
    if not simulated:
        _check_upstream_keys(settings)
    port = _check_port(settings)
    if sys.stderr.isatty():
        click.echo("tokencast: starting; it takes a second or two …", err=True)
    try:
        asyncio.run(_until_stopped(settings, port, simulated))
    except _Failed as failure:
        click.echo(f"tokencast: {failure}", err=True)
        return failure.exit_code
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # nothing is left to be stopped
    return 0


class _Failed(Exception):
    """It cannot go on; what it says has said so already, or it is all there is to say."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Processes:
    """The children. On leaving they are ended, the youngest first; `hurry` skips the courtesies."""

    def __init__(self, hurry: asyncio.Event) -> None:
        self.failure: asyncio.Future[_Failed] = asyncio.get_running_loop().create_future()
        self._hurry = hurry
        self._started: list[tuple[Process, int]] = []
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, name: str, command: list[str], env: dict[str, str], *, terminations: int = 1) -> int:
        """Its pid. `terminations` is how many SIGTERMs it takes to end without delay."""
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(command), env=env, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        self._started.append((process, terminations))
        self._watching.append(asyncio.create_task(self._watch(name, process)))
        return process.pid

    def watch_redis(self, redis: EmbeddedRedis) -> None:
        async def watch() -> None:
            while not redis.exited():  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.25)
            self._fail(_Failed(f"the embedded Redis has died, so everything is stopped. {redis.output()}".strip()))

        self._watching.append(asyncio.create_task(watch()))

    async def _watch(self, name: str, process: Process) -> None:
        status = await process.wait()
        how = f"ended with exit code {status}" if status >= 0 else f"was killed ({signal.Signals(-status).name})"
        self._fail(_Failed(f"the {name} {how}, so everything is stopped.", max(status, 1)))

    def _fail(self, failure: _Failed) -> None:
        if not self.failure.done():
            self.failure.set_result(failure)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watching in self._watching:
            watching.cancel()
        ending = asyncio.create_task(self._end())
        hurrying = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({ending, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            hurrying.cancel()
            for process, _ in self._started:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _end(self) -> None:
        for process, terminations in reversed(self._started):
            for _ in range(terminations):
                if process.returncode is None:
                    process.terminate()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), _END_WITHIN / terminations)


def _on_signals(loop: asyncio.AbstractEventLoop, signalled: Callable[[], None]) -> None:
    """Not through the loop, whose handlers go when it closes: a Ctrl-C in that last moment would be a crash."""

    def received(_number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: everything has ended
            loop.call_soon_threadsafe(signalled)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, received)


async def _until_stopped(settings: Settings, port: int, simulated: bool) -> None:
    """Returns after Ctrl-C or SIGTERM; raises _Failed or Misconfigured. Afterwards nothing runs any more."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    _on_signals(asyncio.get_running_loop(), signalled)
    processes = _Processes(hurry)
    serving = asyncio.create_task(_serve(settings, port, simulated, processes))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping, processes.failure}, return_when=asyncio.FIRST_COMPLETED)
    stop.set()  # from here on a signal means hurry
    stopping.cancel()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    if processes.failure.done():
        raise processes.failure.result()


async def _serve(settings: Settings, port: int, simulated: bool, processes: _Processes) -> None:
    """Never returns: it is cancelled, and then has everything ended, Redis last."""
    variables = {"PORT": str(port)}
    if "drain" not in settings.model_fields_set:
        variables["TOKENCAST_DRAIN"] = _DRAIN
    async with _redis(settings, processes) as redis, processes, httpx2.AsyncClient(trust_env=False) as http:
        variables["REDIS_URL"] = redis.url
        try:
            async with asyncio.timeout(_READY_WITHIN):
                await _start(processes, redis, http, variables, _gateway_url(settings, port), simulated)
        except TimeoutError:
            raise _Failed(f"not everything was ready within {_READY_WITHIN:.0f} s, so it is stopped.") from None
        await _announce(settings, http, _gateway_url(settings, port), simulated)
        await asyncio.Event().wait()


@asynccontextmanager
async def _redis(settings: Settings, processes: _Processes) -> AsyncGenerator[Redis]:
    """The user's, which must answer, or else one of our own."""
    if "redis_url" not in settings.model_fields_set:
        async with EmbeddedRedis() as embedded, connect_redis(embedded.url) as redis:
            processes.watch_redis(embedded)
            await mark_embedded(redis)  # what it does not keep is said below
            yield redis
        return
    async with connect_redis(settings.redis_url) as redis:
        try:
            await redis.execute("PING")
        except StorageUnavailable as error:
            where = without_password(redis.url)
            if why := configuration_error(error):
                raise Misconfigured(f"Redis at {where}: {why}") from None
            raise Misconfigured(f"REDIS_URL: no Redis answers at {where}.") from None
        yield redis


async def _start(
    processes: _Processes,
    redis: Redis,
    http: httpx2.AsyncClient,
    variables: dict[str, str],
    url: str,
    simulated: bool,
) -> None:
    """Returns when the gateway is ready, the worker registered and the simulated upstream, if any, answers."""
    awaited = [f"{url}/readyz"]
    if simulated:
        port = free_port()
        command = python_module("worker.simulator", "--port", str(port))
        await processes.start("simulated upstream", command, environment(*unknown_variables(), **variables))
        variables |= {
            "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
            "OPENAI_API_KEY": SIMULATED_KEY,
            "TOKENCAST_MODELS": _SIMULATED_MODELS,
        }
        awaited.append(f"http://127.0.0.1:{port}/healthz")
    env = environment(*unknown_variables(), **variables)
    pid = await processes.start("worker", python_module("worker"), env, terminations=2)
    await processes.start("gateway", python_module("api"), env)
    await _registered(redis, pid)
    for address in awaited:
        await _answers(http, address)


async def _answers(http: httpx2.AsyncClient, url: str) -> None:
    while True:
        with contextlib.suppress(httpx2.TransportError):
            if (await http.get(url)).status_code == 200:
                return
        await asyncio.sleep(_LOOK_EVERY)


async def _registered(redis: Redis, pid: int) -> None:
    """Returns once the worker of that pid has reported."""
    while True:
        for worker in await redis.execute("ZREVRANGE", keys.WORKERS, 0, 99):
            if await redis.execute("HGET", keys.worker(worker.decode()), "pid") == str(pid).encode():
                return
        await asyncio.sleep(_LOOK_EVERY)


async def _announce(settings: Settings, http: httpx2.AsyncClient, url: str, simulated: bool) -> None:
    if simulated:
        model = SIMULATED_MODEL
        upstream = "SIMULATED: no OPENAI_API_KEY, no OPENAI_BASE_URL, so every answer is made up"
    else:
        model = await _model(settings, http, url)
        upstream = ", ".join(each.base_url for each in settings.all_upstreams())
    embedded = "redis_url" not in settings.model_fields_set
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Tell me a story."}]}
    key = '-H "Authorization: Bearer $TOKENCAST_API_KEY" ' if settings.api_keys else ""
    click.echo(f"""
Tokencast is ready.

  dashboard  {url}/
  upstream   {upstream}
  Redis      {"embedded, keeps nothing after the end" if embedded else without_password(settings.redis_url)}

  curl -N {url}/v1/chat/completions {key}-H "Content-Type: application/json" \\
    -d {shlex.quote(json.dumps(body))}

Ctrl-C stops everything.
""")


async def _model(settings: Settings, http: httpx2.AsyncClient, url: str) -> str:
    """One that a request can name: from the settings, or else whichever the upstream lists first."""
    named = [model for upstream in settings.all_upstreams() for model in upstream.models]
    key = load(ClientSettings).api_key
    with contextlib.suppress(httpx2.HTTPError, ValueError, KeyError, TypeError):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        listed: Any = (await http.get(f"{url}/v1/models", headers=headers, timeout=3.0)).json()
        named += [str(model["id"]) for model in listed["data"]]
    return next((model for model in named if not set(model) & set("*?[")), "MODEL")


def _check_upstream_keys(settings: Settings) -> None:
    for upstream in settings.all_upstreams():
        if not upstream.usable:
            raise Misconfigured(f"{' and '.join(upstream.missing)} is not set, and {upstream.base_url} needs it.")


def _check_port(settings: Settings) -> int:
    """The gateway's port. Looked at before anything is started, so that a taken one is all there is to read."""
    if settings.port == 0:
        return free_port()
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Misconfigured(
                    f"Port {settings.port} is taken; the variable PORT chooses another, as in `PORT=8123 make run`."
                ) from None
            raise Misconfigured(
                f"HOST, PORT: cannot listen on {settings.host}:{settings.port}: {error.strerror or error}."
            ) from None
    return settings.port


def _gateway_url(settings: Settings, port: int) -> str:
    host = _HERE.get(settings.host, settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

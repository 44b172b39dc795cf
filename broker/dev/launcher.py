"""`tokencast dev`: starts everything on this machine, for the lifetime of this process.

Redis, the simulated upstream if no other is set, a worker and a gateway are child processes, each in its own session:
Ctrl-C reaches only this process, which stops them in order. If this process is killed, the kernel kills them.
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
from broker.settings.client_settings import ClientSettings
from broker.settings.loading import load, load_for_process, unknown_variables
from broker.settings.settings import SIMULATED_KEY, Settings
from broker.store import keys
from broker.store.preflight import mark_embedded

SIMULATED_MODEL = "gabforge-coder"
_SIMULATED_MODELS = f"{SIMULATED_MODEL},sim,sim-*"
_READY_WITHIN = 30.0  # seconds; one or two are usual
_POLL_INTERVAL = 0.02
_DRAIN = "0.5"  # seconds over which the gateway ends its streams: there is no other gateway for their readers
_END_WITHIN = 1.0  # seconds from one signal to the next; the last one is SIGKILL
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - address of a gateway that listens on all interfaces


def run() -> int:
    """Run until stopped; return the exit code. Raises Misconfigured before anything is started if the settings are
    invalid."""
    settings = load_for_process()
    load(ClientSettings)  # its key is used once everything runs
    for warning in unknown_variables().values():
        click.echo(f"tokencast: {warning}", err=True)
    simulated = not (settings.openai_api_key or settings.openai_base_url or settings.upstreams)
    if not simulated:
        _check_upstream_keys(settings)
    port = _check_port(settings)
    if sys.stderr.isatty():
        click.echo("tokencast: starting, which takes one or two seconds …", err=True)
    try:
        asyncio.run(_until_stopped(settings, port, simulated))
    except _Failed as failure:
        click.echo(f"tokencast: {failure}", err=True)
        return failure.exit_code
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # everything has been stopped
    return 0


class _Failed(Exception):
    """A fatal error; its message is shown without a traceback."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Processes:
    """The child processes. On exit they are stopped, the last one started first; `hurry` kills them at once."""

    def __init__(self, hurry: asyncio.Event) -> None:
        self.failure: asyncio.Future[_Failed] = asyncio.get_running_loop().create_future()
        self._hurry = hurry
        self._started: list[tuple[Process, int]] = []
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, name: str, command: list[str], env: dict[str, str], *, terminations: int = 1) -> int:
        """Start a process; return its pid. `terminations`: number of SIGTERMs after which it ends without delay."""
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(command), env=env, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        self._started.append((process, terminations))
        self._watching.append(asyncio.create_task(self._watch(name, process)))
        return process.pid

    def watch_redis(self, redis: EmbeddedRedis) -> None:
        """Stop everything if the embedded Redis ends."""

        async def watch() -> None:
            while not redis.exited():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.25)
            self._fail(_Failed(f"the embedded Redis died; stopping everything. {redis.output()}".strip()))

        self._watching.append(asyncio.create_task(watch()))

    async def _watch(self, name: str, process: Process) -> None:
        status = await process.wait()
        how = f"ended with exit code {status}" if status >= 0 else f"was killed ({signal.Signals(-status).name})"
        self._fail(_Failed(f"the {name} {how}; stopping everything.", max(status, 1)))

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
    """Install signal handlers independent of the loop, which removes its own when it closes: a Ctrl-C after that would
    cause a traceback."""

    def received(_number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: everything has been stopped
            loop.call_soon_threadsafe(signalled)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, received)


async def _until_stopped(settings: Settings, port: int, simulated: bool) -> None:
    """Run until Ctrl-C or SIGTERM. Raises _Failed or Misconfigured. All child processes have ended afterwards."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    _on_signals(asyncio.get_running_loop(), signalled)
    processes = _Processes(hurry)
    serving = asyncio.create_task(_serve(settings, port, simulated, processes))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping, processes.failure}, return_when=asyncio.FIRST_COMPLETED)
    stop.set()  # from now on a signal means `hurry`
    stopping.cancel()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    if processes.failure.done():
        raise processes.failure.result()


async def _serve(settings: Settings, port: int, simulated: bool, processes: _Processes) -> None:
    """Run until cancelled, then stop everything, Redis last."""
    variables = {"PORT": str(port)}
    if "drain" not in settings.model_fields_set:
        variables["TOKENCAST_DRAIN"] = _DRAIN
    async with _redis(settings, processes) as redis, processes, httpx2.AsyncClient(trust_env=False) as http:
        variables["REDIS_URL"] = redis.url
        try:
            async with asyncio.timeout(_READY_WITHIN):
                await _start(processes, redis, http, variables, _gateway_url(settings, port), simulated)
        except TimeoutError:
            raise _Failed(f"not everything was ready within {_READY_WITHIN:.0f} s; stopping everything.") from None
        await _announce(settings, http, _gateway_url(settings, port), simulated)
        await asyncio.Event().wait()


@asynccontextmanager
async def _redis(settings: Settings, processes: _Processes) -> AsyncGenerator[Redis]:
    """Yield the user's Redis, which must respond, or an embedded one."""
    if "redis_url" not in settings.model_fields_set:
        async with EmbeddedRedis() as embedded, connect_redis(embedded.url) as redis:
            processes.watch_redis(embedded)
            await mark_embedded(redis)  # its missing persistence is announced below
            yield redis
        return
    async with connect_redis(settings.redis_url) as redis:
        try:
            await redis.execute("PING")
        except StorageUnavailable as error:
            where = without_password(redis.url)
            if why := configuration_error(error):
                raise Misconfigured(f"Redis at {where}: {why}") from None
            raise Misconfigured(f"REDIS_URL: no Redis responds at {where}.") from None
        yield redis


async def _start(
    processes: _Processes,
    redis: Redis,
    http: httpx2.AsyncClient,
    variables: dict[str, str],
    url: str,
    simulated: bool,
) -> None:
    """Start the processes; wait until the gateway is ready, the worker registered and the simulated upstream
    responds."""
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
    await _wait_for_worker(redis, pid)
    for address in awaited:
        await _wait_for_url(http, address)


async def _wait_for_url(http: httpx2.AsyncClient, url: str) -> None:
    """Wait until a URL responds with 200."""
    while True:
        with contextlib.suppress(httpx2.TransportError):
            if (await http.get(url)).status_code == 200:
                return
        await asyncio.sleep(_POLL_INTERVAL)


async def _wait_for_worker(redis: Redis, pid: int) -> None:
    """Wait until the worker with this pid has registered."""
    while True:
        for worker in await redis.execute("ZREVRANGE", keys.WORKERS, 0, 99):
            if await redis.execute("HGET", keys.worker(worker.decode()), "pid") == str(pid).encode():
                return
        await asyncio.sleep(_POLL_INTERVAL)


async def _announce(settings: Settings, http: httpx2.AsyncClient, url: str, simulated: bool) -> None:
    if simulated:
        model = SIMULATED_MODEL
        upstream = "SIMULATED: OPENAI_API_KEY and OPENAI_BASE_URL are not set, so every answer is made up"
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
  Redis      {"embedded; its data is lost when it stops" if embedded else without_password(settings.redis_url)}

  curl -N {url}/v1/chat/completions {key}-H "Content-Type: application/json" \\
    -d {shlex.quote(json.dumps(body))}

Ctrl-C stops everything.
""")


async def _model(settings: Settings, http: httpx2.AsyncClient, url: str) -> str:
    """Return a model for the example: the first named in the settings, otherwise the first that the upstream lists."""
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
            raise Misconfigured(f"{' and '.join(upstream.missing)} is not set, but {upstream.base_url} requires it.")


def _check_port(settings: Settings) -> int:
    """Return the gateway's port. Checked before anything is started, so the only output is the message about the
    port."""
    if settings.port == 0:
        return free_port()
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Misconfigured(
                    f"Port {settings.port} is already in use; set PORT to choose another, as in `PORT=8123 make run`."
                ) from None
            raise Misconfigured(
                f"HOST, PORT: cannot listen on {settings.host}:{settings.port}: {error.strerror or error}."
            ) from None
    return settings.port


def _gateway_url(settings: Settings, port: int) -> str:
    host = _HERE.get(settings.host, settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

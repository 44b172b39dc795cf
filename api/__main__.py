"""`tokencast api`: run a gateway, configured by environment variables, in one process or several."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import sys

import uvloop

from api.app import create_app
from api.server.server import Server, config_for, listen
from api.server.supervisor import supervise
from api.streaming.connections import Connections
from broker.broker import connect
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import Misconfigured
from broker.redis.client import without_password
from broker.runtime.logging import configure_logging
from broker.runtime.process import prepare, refuse
from broker.runtime.sockets import shown
from broker.runtime.tracing import configure_tracing
from broker.settings.inspection.processes import check_open
from broker.settings.loading import load_for_process, unknown_variables
from broker.settings.settings import Settings
from broker.store.preflight import Preflight

FILES = 4096  # open files; each subscriber needs one
logger = logging.getLogger("tokencast.api")


async def serve(settings: Settings, sock: socket.socket) -> None:
    """Serve until a signal. Then end the streams over the drain window; their readers reconnect to other gateways."""
    async with connect(settings=settings) as broker:
        watch = Preflight(broker.store.redis, broker.queue.redis, settings, logger)
        await watch.check()

        app = create_app(broker)
        connections: Connections = app.state.connections

        async def drain() -> None:
            logger.info("stopping: %d streams to end", len(connections))
            await connections.drain(settings.drain)

        server = Server(config_for(app, settings), drain)
        app.state.metrics.connections = server.server_state.connections
        host, port = sock.getsockname()[:2]
        logger.info("listening on http://%s:%d (Redis %s)", shown(host), port, without_password(settings.logs_url))
        watching = asyncio.create_task(_watch(watch))
        watching.add_done_callback(lambda _: setattr(server, "should_exit", True))
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve(sockets=[sock])
        [ended] = await cancel_and_wait([watching])
        if isinstance(ended, Exception):
            raise ended


async def _watch(watch: Preflight) -> None:
    """Check Redis as soon as it is reachable and from then on; until then the routes answer 503.

    Misconfigured if that Redis cannot be used.
    """
    await watch.wait_until_accepted()
    await watch.run()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tokencast api",
        description="Run a gateway (HTTP and event streams). All settings are environment variables.",
        epilog="Examples:\n  tokencast api\n  PORT=8123 tokencast api --processes 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--processes", type=int, help="number of processes that share the port (default: TOKENCAST_PROCESSES, 1)"
    )
    parser.add_argument(
        "--socket", type=int, help=argparse.SUPPRESS
    )  # file descriptor, passed by the supervisor of several processes
    arguments = parser.parse_args()
    try:
        settings = load_for_process()
        configure_logging(settings.log, settings.log_level)
        for warning in unknown_variables().values():
            logger.warning("%s", warning)
        check_open(settings)
        count = settings.processes if arguments.processes is None else arguments.processes
        if count < 1:
            parser.error("--processes must be at least 1")
        if arguments.socket is None and count > 1:
            return uvloop.run(supervise(settings, count))
        sock = listen(settings) if arguments.socket is None else socket.socket(fileno=arguments.socket)
        prepare(logger, FILES)
        send_traces = configure_tracing("tokencast-api")
        try:
            uvloop.run(serve(settings, sock))
        finally:
            send_traces()
    except Misconfigured as error:
        return refuse("tokencast api", error)
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

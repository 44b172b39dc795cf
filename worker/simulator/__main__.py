"""`python -m worker.simulator`: serve until SIGINT or SIGTERM."""

import argparse
import asyncio
import signal
import sys

from aiohttp import web

import worker.simulator as package
from worker.simulator.app import create_app
from worker.simulator.directives import BadRequest
from worker.simulator.quota import Quota, read_quota

BACKLOG = 4096  # connections waiting to be accepted: benchmarks open hundreds at once


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tokencast upstream-sim",
        description=package.__doc__,
        epilog="Examples:\n  tokencast upstream-sim\n  tokencast upstream-sim --port 8123 --require-key secret",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8001, help="port; 0 selects a free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--require-key", metavar="KEY", help="respond with 401 to requests without this API key")
    parser.add_argument("--quota", metavar="JSON", default="{}", help="quota at the start (default: no limits)")
    given = parser.parse_args()
    try:
        quota = read_quota(given.quota.encode("utf-8", "surrogateescape"))
    except BadRequest as error:
        parser.error(f"--quota: {error.message}")
    asyncio.run(serve(given.host, given.port, given.require_key, quota))


async def serve(host: str, port: int, required_key: str | None = None, quota: Quota | None = None) -> None:
    """Serve until SIGINT or SIGTERM; write one line with the URL to stdout once ready."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(
        create_app(required_key, quota), handler_cancellation=True, access_log=None, shutdown_timeout=0.01
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    bound: int = runner.addresses[0][1]
    sys.stdout.write(f"upstream-sim ready on http://{host}:{bound}/v1\n")
    sys.stdout.flush()
    await stopped.wait()
    await runner.cleanup()


if __name__ == "__main__":
    main()

"""`python -m worker`: run a worker configured by the environment; `--check` tells whether one is alive on this host."""

from __future__ import annotations

import argparse
import asyncio
import sys

from broker.errors import BrokerError, Misconfigured
from broker.redis.client import connect_redis
from broker.runtime.logging import configure_logging
from broker.runtime.process import prepare, refuse
from broker.runtime.tracing import configure_tracing
from broker.settings.loading import load_for_process, unknown_variables
from broker.settings.settings import Settings
from worker.monitoring.heartbeat import has_live_worker


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tokencast worker",
        description="Run a worker, configured by environment variables.",
        epilog="Examples:\n  tokencast worker\n  tokencast worker --check && echo alive\n"
        "  tokencast worker --check-upstreams",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 0 if a worker on this host is alive, otherwise with 1"
    )
    parser.add_argument(
        "--check-upstreams",
        action="store_true",
        help="try each upstream with its key, without a completion; exit with 0 if all answer, otherwise with 1",
    )
    arguments = parser.parse_args()
    try:
        settings = load_for_process()
        configure_logging(settings.log, settings.log_level)
        if arguments.check_upstreams:
            return _try_upstreams(settings)
        return asyncio.run(_check(settings)) if arguments.check else _work(settings)
    except Misconfigured as error:
        return refuse("tokencast worker", error)


def _work(settings: Settings) -> int:
    # Imported here: the SDK takes a second to import, and `--check` runs often.
    from worker import worker as process

    for remark in unknown_variables().values():
        process.log.warning("%s", remark)
    process.check_upstreams(settings)
    prepare(
        process.log, files=4 * settings.slots + 200
    )  # each slot needs a connection to the upstream and some to Redis
    send_traces = configure_tracing("tokencast-worker")
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(process.run(settings))
    finally:
        send_traces()


def _try_upstreams(settings: Settings) -> int:
    from worker.upstream.check import check_upstreams
    from worker.upstream.client import check_client

    check_client(settings.all_upstreams())
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        checks = runner.run(check_upstreams(settings))
    for check in checks:
        print(check)  # noqa: T201
    return 1 if any(check.problem for check in checks) else 0


async def _check(settings: Settings) -> int:
    async with connect_redis(settings.redis_url, socket_timeout=2.0) as redis:
        try:
            return 0 if await has_live_worker(redis) else 1
        except BrokerError as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 1


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())

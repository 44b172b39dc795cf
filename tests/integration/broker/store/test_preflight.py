"""Checks of Redis by gateways and workers, at the start and while they run."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.acceptance.cli.test_dev import dev
from tests.servers.tcp import tcp_server
from tests.support import (
    ROOT,
    Gateway,
    Service,
    clean_environment,
    gateway,
    request_body,
    service,
    ticket_of,
    wait_until,
    worker,
)

QUICK = {"TOKENCAST_LEASE": "0.5"}
EVICTING = {"maxmemory-policy": "allkeys-lru"}
READY = {"api": "listening on", "worker": "ready: "}
# Not the simulator's key, which would add a warning to the worker's output.
VARIABLES = {"PORT": "0", "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", **QUICK}


@asynccontextmanager
async def both(redis_url: str, **variables: str) -> AsyncGenerator[tuple[Service, Service], None]:
    """A gateway and a worker, just started."""
    settings = {**VARIABLES, "REDIS_URL": redis_url, **variables}
    async with service("api", **settings) as api, service("worker", **settings) as process:
        yield api, process


async def refused(*processes: Service) -> list[str]:
    """The one line with which each process ends."""
    for process in processes:
        assert await process.wait() == 2, process.output
    assert [len(process.lines) for process in processes] == [1] * len(processes), processes[0].output
    return [process.lines[0] for process in processes]


async def test_a_server_that_evicts_keys_is_refused_in_one_line(engine: str) -> None:
    """Even without `maxmemory`: it can be set later, while processes run."""
    async with EmbeddedRedis(binary=engine, options=EVICTING) as redis:
        url = await user_of(redis, "somebody", "+@all")
        async with both(url) as processes:
            for line in await refused(*processes):
                assert "maxmemory-policy is allkeys-lru" in line
                assert "CONFIG SET maxmemory-policy noeviction" in line
                assert "hunter2" not in line


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/99", "database 99 cannot be used: DB index is out of range"),
        ("/abc", "REDIS_URL: a database must be a number"),
        ("/0?decode_responses=true", "REDIS_URL: unknown option decode_responses"),
        ("/0?protocol=3", "REDIS_URL: unknown option protocol"),
        ("/0?encoding=latin-1", "REDIS_URL: unknown option encoding"),
        ("/0#Hunter2", "REDIS_URL: .*percent-encode"),
    ],
)
async def test_an_invalid_url_is_refused_in_one_line(redis: EmbeddedRedis, path: str, reason: str) -> None:
    async with both(redis.url.replace("/0", path)) as processes:
        for line in await refused(*processes):
            assert re.search(reason, line)
            assert "Hunter2" not in line


async def test_a_queue_that_evicts_keys_is_refused() -> None:
    async with (
        EmbeddedRedis() as logs,
        EmbeddedRedis(options=EVICTING) as queue,
        both(queue.url, TOKENCAST_STREAMS_URL=logs.url) as processes,
    ):
        for process in processes:
            assert await process.wait() == 2
            assert f"{queue.url}: maxmemory-policy is allkeys-lru" in process.lines[-1]


@pytest.mark.parametrize(
    ("path", "options", "reason"),
    [("/0", EVICTING, "maxmemory-policy is allkeys-lru"), ("/99", {}, "database 99 cannot be used")],
)
async def test_a_server_unreachable_at_the_start_is_checked_when_it_answers(
    path: str, options: dict[str, str], reason: str
) -> None:
    async with EmbeddedRedis() as redis:
        redis.kill()
        redis.options |= options
        async with both(redis.url.replace("/0", path)) as processes:
            for process in processes:
                await process.says("does not answer")
            await redis.restart()
            for process in processes:
                assert await process.wait() == 2
                assert reason in process.lines[-1]
                assert "Traceback" not in process.output


@asynccontextmanager
async def with_old_version(target: str) -> AsyncGenerator[str, None]:
    """The URL of a proxy that changes the server's version to 6.0."""
    parts = urlsplit(target)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 18):
                writer.write(re.sub(rb"redis_version:\d\.\d", b"redis_version:6.0", data))
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            await asyncio.gather(relay(reader, to_redis), relay(from_redis, writer))
        finally:
            to_redis.transport.abort()

    async with tcp_server(serve) as address:
        yield f"redis://{address}/0"


async def test_an_unsupported_version_is_refused_in_one_line(redis: EmbeddedRedis) -> None:
    async with with_old_version(redis.url) as url, both(url) as processes:
        for line in await refused(*processes):
            assert re.search(r"Redis 6\.0\S* is too old, 6\.2 or newer is required", line)


async def test_a_different_number_of_shards_is_refused(redis: EmbeddedRedis, broker: Broker) -> None:
    execute = broker.queue.redis.execute
    await execute("SET", keys.SHARD_COUNT, "16", "EX", 600)
    async with both(redis.url) as processes:
        for line in await refused(*processes):
            assert "has 16 shards, this version has 32" in line
    assert await execute("GET", keys.SHARD_COUNT) == b"16"
    await execute("DEL", keys.SHARD_COUNT)


async def test_missing_persistence_is_reported_once(redis: EmbeddedRedis, broker: Broker) -> None:
    async with both(redis.url) as processes:
        for process, ready in zip(processes, READY.values(), strict=True):
            await process.says(ready)
        assert await broker.queue.redis.execute("GET", keys.SHARD_COUNT) == b"32"
        await checked_again(broker)
        await checked_again(broker)
        for process in processes:
            [line] = [line for line in process.lines if "append-only" in line]
            assert "WARNING" in line


async def checked_again(broker: Broker) -> None:
    """Wait for the next check, which renews the expiry of a key."""
    execute = broker.queue.redis.execute
    await execute("PEXPIRE", keys.SHARD_COUNT, 60_000)

    async def renewed() -> bool:
        return await execute("PTTL", keys.SHARD_COUNT) > 60_000

    await wait_until(renewed)


async def test_changed_server_settings_are_reported_and_tolerated(sim: str) -> None:
    """The policy is set while processes run, or Redis restarts with another configuration file."""
    async with (
        EmbeddedRedis(appendonly=True) as redis,
        connect(redis.url) as broker,
        gateway(redis.url, **QUICK) as api,
        worker(redis.url, sim, **QUICK) as process,
    ):
        assert "maxmemory-policy" not in api.process.output + process.output
        await broker.store.redis.execute("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        for each in (api.process, process):
            await each.says("ERROR.*maxmemory-policy is volatile-lru")
        redis.options |= EVICTING
        await redis.restart()
        for each in (api.process, process):
            await each.says("ERROR.*maxmemory-policy is allkeys-lru")
        gid = await wait_until(lambda: created(api.http))
        assert (await api.ended(gid))["status"] == "completed"


async def created(http: httpx2.AsyncClient) -> str | None:
    response = await http.post("/v1/generations", json=request_body("[[sim length=3 speed=0]]", model="sim"))
    return response.json()["id"] if response.status_code == 202 else None


async def user_of(redis: EmbeddedRedis, name: str, *rights: str) -> str:
    """The URL of a new user."""
    async with connect(redis.url) as broker:
        await broker.store.redis.execute("ACL", "SETUSER", name, "reset", "on", ">hunter2", "~*", "&*", *rights)
    return redis.url.replace("redis://", f"redis://{name}:hunter2@")


async def runs(broker: Broker) -> bool:
    """Whether a generation completes whose ticket was lost, so that the reaper has to find it."""
    generation = await broker.enqueue(request_body("[[sim length=3 speed=0]]", model="sim"))
    await broker.queue.withdraw(await ticket_of(broker.store.redis, generation.id))
    await broker.store.redis.execute("ZADD", keys.live(generation.id[14:16]), 1, generation.id)  # due now
    return [event.name async for event in broker.follow(generation.id)][-1] == "completed"


async def test_without_permission_for_info_processes_warn_and_continue(engine: str, sim: str) -> None:
    async with EmbeddedRedis(binary=engine, options=EVICTING) as redis, connect(redis.url) as broker:
        url = await user_of(redis, "weak", "+@all", "-info", "-config")
        async with gateway(url, **QUICK) as api, worker(url, sim, **QUICK) as process:
            for each in (api.process, process):
                await each.says(r"WARNING.*\+info")
            assert await runs(broker)
            assert "sweep skipped" not in api.process.output + process.output


@pytest.mark.parametrize("command", ["xread", "xadd", "evalsha"])
async def test_a_user_without_a_required_command_is_refused(redis: EmbeddedRedis, command: str) -> None:
    url = await user_of(redis, "weak", "+@all", f"-{command}")
    async with both(url) as processes:
        for line in await refused(*processes):
            assert re.search(rf"Redis at \S+: this user has no permissions to run {command.upper()} \(", line)
            assert "hunter2" not in line


async def test_a_user_without_access_to_our_keys_is_refused(redis: EmbeddedRedis) -> None:
    url = await user_of(redis, "weak", "+@all", "resetkeys", "~other:*")
    async with both(url) as processes:
        for line in await refused(*processes):
            assert "~tc:*" in line


async def test_revoked_permissions_are_named_at_most_once_a_minute(sim: str) -> None:
    """While processes run. They are not ready until the permissions are back; generations wait and then complete."""
    async with (
        EmbeddedRedis() as redis,
        connect(redis.url) as broker,
        gateway(await user_of(redis, "weak", "+@all"), **QUICK) as api,
        worker(await user_of(redis, "weak", "+@all"), sim, **QUICK) as process,
    ):
        made = await api.create(request_body("[[sim length=150 speed=50]]", model="sim"))
        following = asyncio.create_task(api.events(made["id"]))
        await wait_until(lambda: has_first_token(api, made["id"]))
        for command, reason in (("xread", "lost Redis: .*XREAD"), ("evalsha", "events wait: .*EVALSHA")):
            rights = broker.store.redis.execute
            await rights("ACL", "SETUSER", "weak", f"-{command}")
            await (api.process if command == "xread" else process).says(reason)
            for each in (api.process, process):
                await each.says(rf"ERROR.*no permissions to run {command.upper()} \(ACL: \+{command}\)")
            ready = await wait_until(lambda: unready(api))
            assert f"no permissions to run {command.upper()}" in ready
            await rights("ACL", "SETUSER", "weak", f"+{command}")
            await wait_until(lambda: is_ready(api))
        frames = await following
        assert frames[-1].event == "completed"
        assert len([line for line in api.process.lines if "lost Redis" in line]) <= 10
        assert "Traceback" not in api.process.output + process.output


async def has_first_token(api: Gateway, gid: str) -> bool:
    return (await api.get(gid))["first_token_at"] is not None


async def unready(api: Gateway) -> str | None:
    response = await api.http.get("/readyz")
    return response.text if response.status_code == 503 else None


async def is_ready(api: Gateway) -> bool:
    return (await api.http.get("/readyz")).status_code == 200


async def test_the_redis_user_of_the_compose_file_has_all_required_permissions(engine: str, sim: str) -> None:
    """Without administrative permissions, and no command is refused."""
    user = re.search(r"--user, tokencast, (.*),\n", (ROOT / "docker-compose.yml").read_text("utf-8"))
    assert user is not None
    rights = [word for word in re.findall(r'"([^"]+)"', user[1]) if word[0] in "+-"]
    assert "-@admin" in rights
    async with EmbeddedRedis(binary=engine, appendonly=True) as redis, connect(redis.url) as broker:
        url = await user_of(redis, "tokencast", *rights)
        async with gateway(url, **QUICK) as api, worker(url, sim, **QUICK) as process:
            assert await runs(broker)
            await checked_again(broker)
            assert await broker.store.redis.execute("ACL", "LOG") == []
            warned = [line for line in api.process.lines + process.lines if "WARNING" in line]
            assert [line for line in warned if "SIMULATED" not in line and "CVE" not in line] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("kind", READY)
async def test_a_low_file_limit_is_reported(redis: EmbeddedRedis, kind: str) -> None:
    environment = clean_environment(**VARIABLES, REDIS_URL=redis.url)
    pipe = asyncio.subprocess.PIPE
    limited = ("sh", "-c", 'ulimit -n 512 && exec "$0" -m "$1"', sys.executable, kind)
    process = Service(
        await asyncio.create_subprocess_exec(*limited, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe)
    )
    try:
        await process.says(r"WARNING.*ulimit -n\) is 512")
        await process.says(READY[kind])
    finally:
        await process.stop()


async def test_tokencast_dev_warns_only_of_simulated_answers(tmp_path: Path) -> None:
    """That its Redis keeps no data is reported once, in the summary."""
    async with dev(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        assert [line for line in running.lines if "WARNING" in line and "SIMULATED" not in line] == []
        assert running.output.count("its data is lost when it stops") == 1

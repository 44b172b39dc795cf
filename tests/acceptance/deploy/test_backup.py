"""The drill of docs/backup.md: copy, lose, restore, follow, with the script that the page names."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.redis.client import Redis
from tests.support import ROOT, Gateway, gateway, request_body, texts, until_text, upstream_sim, wait_until, worker
from worker.simulator.text import pieces

SHORT_LEASE = {"TOKENCAST_LEASE": "2"}  # the lost generations are unknown after the lease and five seconds


def back_up(directory: Path, archive: Path) -> None:
    with archive.open("wb") as output:
        subprocess.run(["sh", ROOT / "docs/compose/backup.sh", directory], stdout=output, check=True, timeout=60)


def restore(directory: Path, copy: Path) -> None:
    """As on the page: the copy is the standard input, so the script is an argument."""
    script = (ROOT / "docs/compose/restore.sh").read_text("utf-8")
    with copy.open("rb") as source:
        subprocess.run(["sh", "-c", script, "restore.sh", directory], stdin=source, check=True, timeout=60)


async def lose_and_restore(redis: EmbeddedRedis, directory: Path, archive: Path) -> None:
    redis.kill()
    shutil.rmtree(directory / "appendonlydir")
    restore(directory, archive)
    await redis.restart()


async def asked(api: Gateway, seed: int, length: int, speed: float, **extension: object) -> str:
    prompt = f"Tell me something. [[sim seed={seed} length={length} speed={speed:g}]]"
    return (await api.create(request_body(prompt, model="sim", tokencast=extension)))["id"]


async def test_copy_lose_restore_follow(tmp_path: Path) -> None:
    """Gateway and worker run throughout. What ended before the copy, and what runs, is complete; what was created after
    the copy and waits is lost."""
    async with (
        EmbeddedRedis(appendonly=True, dir=tmp_path, options={"appendfsync": "always"}) as redis,
        upstream_sim() as upstream,
        gateway(redis.url, **SHORT_LEASE) as api,
        worker(redis.url, upstream, **SHORT_LEASE),
    ):
        ended = await asked(api, seed=1, length=20, speed=0)
        await wait_until(lambda: is_completed(api, ended))
        scheduled = await asked(api, seed=2, length=20, speed=0, delay_seconds=3600)
        running = await asked(api, seed=3, length=100, speed=20)
        reader = api.follow(running)
        seen = await until_text(reader)

        back_up(tmp_path, tmp_path / "backup.tar")
        lost = await asked(api, seed=4, length=20, speed=0, delay_seconds=3600)
        await lose_and_restore(redis, tmp_path, tmp_path / "backup.tar")

        async for frame in reader:
            seen.append(frame)
        assert [frame.event for frame in seen if frame.event in ("reset", "gap")] == []
        assert seen[-1].event == "completed"
        assert texts(seen) == "".join(pieces(3, 100))
        assert texts(await api.events(ended)) == "".join(pieces(1, 20))
        assert (await api.http.get(f"/v1/generations/{scheduled}")).json()["status"] == "queued"
        await wait_until(lambda: is_unknown(api, lost))
        async with asyncio.timeout(60):
            again = await asked(api, seed=5, length=20, speed=0)
            assert texts(await api.events(again)) == "".join(pieces(5, 20))


async def is_completed(api: Gateway, gid: str) -> bool:
    return (await api.http.get(f"/v1/generations/{gid}")).json()["status"] == "completed"


async def is_unknown(api: Gateway, gid: str) -> bool:
    """503 while a worker may still be restoring it, then 404."""
    answer: httpx2.Response = await api.http.get(f"/v1/generations/{gid}")
    assert answer.status_code in (404, 503), answer.text
    return answer.status_code == 404


async def test_a_copy_is_consistent_while_the_file_is_rewritten(tmp_path: Path) -> None:
    """Redis replaces its files during the copy."""
    (tmp_path / "a").mkdir()
    async with EmbeddedRedis(appendonly=True, dir=tmp_path / "a") as redis, connect(redis.url) as broker:
        commands = broker.store.redis
        for number in range(3):
            await commands.execute("SET", f"tc:backup-{number}", "x" * 1000, "EX", "60")
            await commands.execute("BGREWRITEAOF")
            back_up(tmp_path / "a", tmp_path / "backup.tar")
            (tmp_path / "b").mkdir()
            restore(tmp_path / "b", tmp_path / "backup.tar")
            async with EmbeddedRedis(appendonly=True, dir=tmp_path / "b") as restored, connect(restored.url) as other:
                assert await other.store.redis.execute("EXISTS", f"tc:backup-{number}") == 1
            shutil.rmtree(tmp_path / "b")
            await wait_until(lambda: is_idle(broker.store.redis))


async def is_idle(redis: Redis) -> bool:
    info: bytes = await redis.execute("INFO", "persistence")
    return b"aof_rewrite_in_progress:0" in info and b"aof_rewrite_scheduled:0" in info


async def test_an_rdb_file_is_restored(tmp_path: Path, engine: str) -> None:
    """On both engines, as a managed Redis offers it; a broken copy leaves the present file alone."""
    async with EmbeddedRedis(appendonly=True, dir=tmp_path, binary=engine) as redis, connect(redis.url) as broker:
        await broker.store.redis.execute("SET", "tc:backup", "x", "EX", "60")
        await broker.store.redis.execute("SAVE")
        await broker.store.redis.execute("DEL", "tc:backup")
        redis.kill()
        (tmp_path / "broken").write_bytes(b"not a copy")
        with pytest.raises(subprocess.CalledProcessError):
            restore(tmp_path, tmp_path / "broken")
        await redis.restart()
        assert await broker.store.redis.execute("EXISTS", "tc:backup") == 0
        redis.kill()
        restore(tmp_path, tmp_path / "dump.rdb")
        await redis.restart()
        assert await broker.store.redis.execute("EXISTS", "tc:backup") == 1
        assert files(tmp_path) == {"appendonlydir", "dump.rdb", "broken"}


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}

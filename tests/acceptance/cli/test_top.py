"""`tokencast top`, on a real terminal and without one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from typing import Any

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.cli.terminal import TOKENCAST, Terminal, terminal
from tests.acceptance.cli.test_cli import completed_generation, finish, start, start_generation, tokencast
from tests.support import DEADLINE, Gateway, gateway, gather

TOP = (*TOKENCAST, "top")


async def quit_top(shown: Terminal) -> None:
    """Quit with `q`; the terminal must be restored."""
    shown.press("q")
    assert await shown.end() == 0
    assert shown.is_restored()


async def test_top_shows_the_state_of_every_generation(own_redis: EmbeddedRedis) -> None:
    """Earlier and new generations, their progress, their end and their deletion."""
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        before = await completed_generation(api, broker)
        async with terminal(*TOP, url=api.url) as shown:
            await shown.shows(lambda: shown.row(before)[1:3] == ["completed", "m"])
            writer = await start_generation(api, broker)
            await shown.shows(lambda: shown.row(writer.gid)[1:3] == ["in_progress", "m"])
            await writer.append("one ", "two ", "three")
            await shown.shows(lambda: shown.row(writer.gid)[5:6] == ["3"])
            await shown.shows("0 queued  1 in_progress  1 completed  0 failed  0 cancelled")
            overview = await api.http.get("/v1/overview")
            assert ("0 workers, 0/0 slots" in shown.lines[1]) == (overview.status_code == 200)
            rows = [line.split()[0] for line in shown.lines if line.startswith("gen_")]
            assert rows == [writer.gid, before], "running generations are listed above ended ones"
            await writer.finish("failed", b'{"error":{"message":"It broke.","type":"server_error","code":"c"}}')
            await shown.shows(lambda: shown.row(writer.gid)[1:2] == ["failed"])
            await api.http.delete(f"/v1/generations/{before}")
            await shown.shows(lambda: not shown.row(before))
            await quit_top(shown)


async def test_top_resumes_after_a_restart_of_the_gateway(redis: EmbeddedRedis, broker: Broker) -> None:
    """It reports the missing gateway, then shows the events that it missed."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with gateway(redis.url, PORT=str(port)) as first, terminal(*TOP, url=url) as shown:
        writer = await start_generation(first, broker)
        await shown.shows(lambda: shown.row(writer.gid)[1:2] == ["in_progress"])
        first.process.send(signal.SIGKILL)
        await first.process.wait()
        await shown.shows("no gateway at")
        await writer.finish()
        async with gateway(redis.url, PORT=str(port)) as second:
            await shown.shows(lambda: shown.row(writer.gid)[1:2] == ["completed"])
            await shown.shows(lambda: shown.lines[0] == f"tokencast top  {url}")
            later = (await second.create())["id"]
            await shown.shows(lambda: shown.row(later)[1:2] == ["queued"])
            await quit_top(shown)


async def test_top_fits_a_terminal_of_any_size(api: Gateway, broker: Broker) -> None:
    gids = [await completed_generation(api, broker) for _ in range(6)]
    async with terminal(*TOP, url=api.url, columns=140) as shown:
        await shown.shows(gids[-1])
        shown.resize(72, 7)
        await shown.shows(lambda: shown.row(gids[-1])[:1] == [gids[-1][-8:]])
        await shown.shows(lambda: shown.lines[6].startswith("1-3 of"))
        assert shown.row(gids[-1])[7] == "1", "only the last column, with error codes, is cut off"
        shown.resize(9, 3)
        await shown.shows(lambda: shown.lines[0] == "tokencas…")
        shown.resize(140, 16)
        await shown.shows(gids[-1])
        await quit_top(shown)


async def test_the_keys_of_top(own_redis: EmbeddedRedis) -> None:
    async with gateway(own_redis.url) as api, connect(own_redis.url) as broker:
        gids = [await completed_generation(api, broker) for _ in range(4)]
        waiting = (await api.create())["id"]
        async with terminal(*TOP, url=api.url, lines=7) as shown:
            await shown.shows("1-3 of 5")
            assert shown.row(waiting)
            shown.press("\x1b[B")
            await shown.shows("2-4 of 5")
            shown.press("\x1b[6~")
            await shown.shows(lambda: "3-5 of 5" in shown.lines[6] and bool(shown.row(gids[0])))
            assert not shown.row(waiting)
            shown.press("f")
            await shown.shows("1-1 of 1  queued")
            assert (bool(shown.row(waiting)), bool(shown.row(gids[0]))) == (True, False)
            await quit_top(shown)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
async def test_a_signal_restores_the_terminal(api: Gateway, number: signal.Signals, code: int) -> None:
    async with terminal(*TOP, url=api.url) as shown:
        await shown.shows("q quit")
        assert not shown.is_restored()
        if number == signal.SIGINT:
            shown.press("\x03")
        else:
            shown.process.send_signal(number)
        assert await shown.end() == code
        assert shown.is_restored()


async def test_ctrl_z_returns_the_terminal_to_the_shell(api: Gateway) -> None:
    """The shell has the terminal until it continues the program."""
    shell = ("bash", "--norc", "-mc", '"$@"; stty -a; read; fg', "shell", *TOP)
    async with terminal(*shell, url=api.url, lines=30) as shown:
        await shown.shows("q quit")
        shown.screen.reset()
        shown.press("\x1a")
        await shown.shows(lambda: any(" echo" in line for line in shown.lines))
        assert shown.is_restored()
        shown.press("\n")
        await shown.shows("q quit")
        assert not shown.is_restored()
        await quit_top(shown)


async def test_without_a_gateway_the_terminal_is_unchanged() -> None:
    async with terminal(*TOP, url=f"http://127.0.0.1:{free_port()}") as shown:
        assert await shown.end() == 2
        assert b"\x1b" not in shown.raw
        assert b"no gateway at" in shown.raw


async def test_top_without_a_terminal_prints_one_table_or_json(api: Gateway, broker: Broker) -> None:
    gid = await completed_generation(api, broker)
    text, one, as_json, wrong = await gather(
        tokencast("top", url=api.url),
        tokencast("top", "--limit", "1", url=api.url),
        tokencast("top", "--once", "--json", url=api.url),
        tokencast("top", "--after", "latest", url=api.url),
    )
    assert (text.code, text.err, "\x1b" in text.out) == (0, "", False)
    counters, heading, *_ = text.out.splitlines()
    assert "queued" in counters
    assert heading.split() == ["ID", "STATUS", "MODEL", "AGE", "FIRST", "TOKENS", "TOK/S", "ATTEMPT", "ERROR"]
    assert [line.split()[:2] for line in one.out.splitlines()[2:]] == [[gid, "completed"]]
    assert (
        json.loads(as_json.out)["generations"][0] == (await api.http.get("/v1/generations?limit=1")).json()["data"][0]
    )
    assert (wrong.code, wrong.out) == (2, "")


async def next_change(process: Process, event: str, gid: str) -> dict[str, Any]:
    """Return the next line with this event of this generation."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        while True:
            line = json.loads(await process.stdout.readline())
            if (line["event"], line["data"]["id"]) == (event, gid):
                return line


async def test_top_prints_a_json_line_for_each_change(redis: EmbeddedRedis, broker: Broker) -> None:
    """Also over a crash of the gateway. A program can continue after the last line that it has read."""
    port = str(free_port())
    async with gateway(redis.url, PORT=port) as api:
        process = await start("top", "--json", url=api.url)
        writer = await start_generation(api, broker)
        began = await next_change(process, "started", writer.gid)
        assert set(began) == {"id", "event", "data"}
        api.process.send(signal.SIGKILL)
        await api.process.wait()
    await writer.finish()
    async with gateway(redis.url, PORT=port) as api:
        ended = await next_change(process, "completed", writer.gid)
        assert ended["data"] == (await api.http.get("/v1/generations?limit=1")).json()["data"][0]
        process.send_signal(signal.SIGINT)
        done = await finish(process)
        assert done.code == 130
        assert "\x1b" not in done.err
        again = await start("top", "--json", "--after", str(began["id"]), url=api.url)
        assert await next_change(again, "completed", writer.gid) == ended
        os.kill(again.pid, signal.SIGTERM)
        await finish(again)

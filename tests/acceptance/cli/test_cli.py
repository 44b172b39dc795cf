"""The `tokencast` command as a process: its output and its exit code, against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.servers.forked import Process, start_module
from tests.servers.tcp import tcp_server
from tests.support import DEADLINE, Gateway, Writer, clean_environment, gather, request_body, service


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


async def start(*arguments: str, url: str, stdin: int = DEVNULL, stdout: int = PIPE, **variables: str) -> Process:
    environment = clean_environment(TOKENCAST_URL=url, **variables)
    return await start_module("broker", *arguments, environment=environment, stdin=stdin, stdout=stdout)


async def finish(process: Process, given: bytes | None = None) -> Done:
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(given)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def tokencast(*arguments: str, url: str, given: bytes | None = None, **variables: str) -> Done:
    """Run the command to its end."""
    stdin = DEVNULL if given is None else PIPE
    return await finish(await start(*arguments, url=url, stdin=stdin, **variables), given)


async def start_generation(api: Gateway, broker: Broker, **headers: str) -> Writer:
    return await Writer(broker.store.redis, (await api.create(**headers))["id"]).claim()


async def completed_generation(api: Gateway, broker: Broker) -> str:
    writer = await start_generation(api, broker)
    await writer.append("Hello ", "wörld")
    await writer.finish()
    return writer.gid


async def test_enqueue_takes_its_prompt_from_the_argument_or_stdin(api: Gateway) -> None:
    by_argument, by_pipe, empty, binary = await gather(
        tokencast("enqueue", "Say hi", "--model", "sim", "--metadata", "a=1", "--metadata", "b=2", url=api.url),
        tokencast("enqueue", "--system", "Be brief.", "--json", url=api.url, given="Grüße\n".encode()),
        tokencast("enqueue", url=api.url, given=b"\n"),
        tokencast("enqueue", url=api.url, given=b"\xff"),
    )
    assert (by_argument.code, by_argument.err) == (0, "")
    assert re.fullmatch(r"gen_\w{34}\n", by_argument.out)
    generation = await api.get(by_argument.out.strip())
    assert (generation["model"], generation["metadata"]) == ("sim", {"a": "1", "b": "2"})
    assert json.loads(by_pipe.out)["model"] == "gabforge-coder", "the first model that the gateway lists"
    assert (empty.code, empty.out) == (2, "")
    assert "empty" in empty.err
    assert (binary.code, binary.out) == (2, "")
    assert "UTF-8" in binary.err


async def test_enqueue_with_the_same_key_prints_the_same_generation(api: Gateway) -> None:
    key = ("--idempotency-key", "order-17")
    first = await tokencast("enqueue", "Say hi", *key, url=api.url)
    again, other = await gather(
        tokencast("enqueue", "Say hi", *key, url=api.url), tokencast("enqueue", "Say bye", *key, url=api.url)
    )
    assert (again.code, again.out) == (0, first.out)
    assert (other.code, other.out) == (2, "")
    assert "Idempotency-Key" in other.err


async def test_follow_prints_the_text_while_it_is_generated(api: Gateway, broker: Broker) -> None:
    """Each piece is printed before the next one is written; the exit code tells the outcome."""
    writer = await start_generation(api, broker)
    process = await start("follow", writer.gid, url=api.url)
    assert process.stdout is not None
    for text in ("One ", "two ", "three"):
        await writer.append(text)
        async with asyncio.timeout(DEADLINE):
            assert await process.stdout.readexactly(len(text)) == text.encode()
    await writer.finish()
    assert await finish(process) == Done(0, "\n", "")


async def test_follow_begins_after_the_given_cursor(api: Gateway, broker: Broker) -> None:
    gid = await completed_generation(api, broker)
    cursors = [frame.id or "" for frame in await api.events(gid)]
    all_of_it, rest, nothing, wrong = await gather(
        tokencast("follow", gid, url=api.url),
        tokencast("follow", gid, "--after", cursors[2], url=api.url),
        tokencast("follow", gid, "--after", cursors[-1], url=api.url),
        tokencast("follow", gid, "--after", "yesterday", url=api.url),
    )
    assert all_of_it == Done(0, "Hello wörld\n", "")
    assert rest == Done(0, "wörld\n", "")
    assert nothing == Done(0, "", "")
    assert (wrong.code, wrong.out) == (2, "")
    assert "cursor" in wrong.err


async def test_follow_prints_one_json_line_per_event(api: Gateway, broker: Broker) -> None:
    gid = await completed_generation(api, broker)
    frames = await api.events(gid)
    done = await tokencast("follow", gid, "--json", url=api.url)
    events = [json.loads(line) for line in done.out.splitlines()]
    assert events == [{"id": frame.id, "event": frame.event, "data": frame.json} for frame in frames]
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("failed", 1, "It broke."),
        ("cancelled", 3, "cancelled"),
        ("deleted", 4, "deleted"),
    ],
)
async def test_the_exit_code_of_follow_tells_the_ending(
    api: Gateway, broker: Broker, end: str, code: int, message: str
) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Hel")
    process = await start("follow", writer.gid, url=api.url)
    assert process.stdout is not None
    assert await process.stdout.readexactly(3) == b"Hel"
    if end == "failed":
        await writer.finish("failed", b'{"error":{"message":"It broke.","code":"upstream_error"}}')
    elif end == "cancelled":
        assert await tokencast("cancel", writer.gid, url=api.url) == Done(0, "cancelled\n", "")
    else:
        await api.http.delete(f"/v1/generations/{writer.gid}")
    done = await finish(process)
    assert (done.code, done.out) == (code, "\n")
    assert message in done.err
    later = await tokencast("follow", writer.gid, url=api.url)
    assert later.code == code


async def test_follow_announces_a_new_attempt_on_a_line_of_its_own(api: Gateway, broker: Broker) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Half a tru")
    process = await start("follow", writer.gid, url=api.url)
    assert process.stdout is not None
    assert await process.stdout.readexactly(10) == b"Half a tru"
    await writer.release()
    await writer.claim()
    await writer.append("The whole truth")
    await writer.finish()
    done = await finish(process)
    assert (done.code, done.out) == (0, "\nThe whole truth\n")
    assert "worker_stopped" in done.err


async def test_a_list_is_a_table_or_json(api: Gateway, broker: Broker) -> None:
    gid = await completed_generation(api, broker)
    waiting = (await api.create())["id"]
    table, some, lines, wrong = await gather(
        tokencast("ls", "--limit", "2", url=api.url),
        tokencast("ls", "--status", "completed", url=api.url),
        tokencast("ls", "--json", "--limit", "1", url=api.url),
        tokencast("ls", "--status", "lost", url=api.url),
    )
    heading, first, second = table.out.splitlines()
    assert heading.split() == ["ID", "STATUS", "MODEL", "AGE", "ATTEMPT", "TOKENS", "ERROR"]
    assert first.split()[:3] == [waiting, "queued", "m"]
    assert second.split()[:3] == [gid, "completed", "m"]
    assert len({line.index(" m ") for line in (first, second)}) == 1, "columns"
    assert gid in some.out
    assert waiting not in some.out
    assert json.loads(lines.out)["id"] == waiting
    assert wrong.code == 2


async def test_show_prints_a_generation_in_full(api: Gateway, broker: Broker) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Hello ", "wörld")
    text, as_json = await gather(
        tokencast("show", writer.gid, url=api.url), tokencast("show", writer.gid, "--json", url=api.url)
    )
    assert text.code == 0
    assert re.search(r"^status +in_progress$", text.out, re.MULTILINE)
    assert text.out.endswith("\n\nHello wörld\n")
    assert json.loads(as_json.out) == await api.get(writer.gid)


async def test_an_unknown_generation_is_exit_code_4(api: Gateway) -> None:
    unknown = "gen_01kbn2h8v010" + "0" * 22
    for done in await gather(
        *(tokencast(command, gid, url=api.url) for command in ("follow", "show", "cancel") for gid in (unknown, "x"))
    ):
        assert (done.code, done.out, len(done.err.splitlines())) == (4, "", 1)


async def test_a_refusal_or_a_missing_gateway_is_one_clear_line(api: Gateway) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    refused, unreachable, unreachable_stream, no_url = await gather(
        tokencast("enqueue", "hi", "--model", "no-such-model", url=api.url),
        tokencast("ls", url=nowhere),
        tokencast("follow", "gen_01kbn2h8v010" + "0" * 22, url=nowhere),
        tokencast("ls", url="nonsense"),
    )
    assert refused.code == 2
    assert "no-such-model" in refused.err
    for done in (unreachable, unreachable_stream):
        assert done == Done(2, "", f"tokencast: no gateway at {nowhere}: is `tokencast api` or `make run` running?\n")
    assert (no_url.code, len(no_url.err.splitlines())) == (2, 1)


async def test_a_closed_pipe_is_not_an_error(api: Gateway, broker: Broker) -> None:
    """As in `tokencast follow ID | head -c 5`."""
    writer = await start_generation(api, broker)
    reading, writing = os.pipe()
    process = await start("follow", writer.gid, url=api.url, stdout=writing)
    os.close(writing)
    await writer.append("Hello")
    assert await asyncio.to_thread(os.read, reading, 5) == b"Hello"
    os.close(reading)
    await writer.append("nobody reads this")
    done = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert done[1] == b""


async def test_a_replay_prints_in_the_pace_of_the_log(api: Gateway, broker: Broker) -> None:
    """With speed 0.2; text that is not due yet is not printed."""
    writer = await start_generation(api, broker)
    await writer.append("Hello ", at=0)
    await writer.append("wörld", at=1500)
    await writer.finish()
    began = time.monotonic()
    quick, events, wrong = await gather(
        tokencast("replay", writer.gid, "--speed", "5", url=api.url),
        tokencast("replay", writer.gid, "--speed", "1000", "--json", url=api.url),
        tokencast("replay", writer.gid, "--speed", "0", url=api.url),
    )
    assert time.monotonic() - began >= 0.3
    assert quick == Done(0, "Hello wörld\n", "")
    assert [json.loads(line)["id"] for line in events.out.splitlines()] == [
        frame.id for frame in await api.events(writer.gid)
    ]
    assert (wrong.code, wrong.out) == (2, "")
    assert "speed" in wrong.err


async def test_several_generations_are_followed_on_one_connection(redis: EmbeddedRedis, broker: Broker) -> None:
    """Also over a crash of the gateway, without repeated events; the exit code is 0 only if all completed."""
    port = str(free_port())
    variables = {"REDIS_URL": redis.url, "PORT": port}
    writers = [await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim() for _ in range(3)]
    gids = [writer.gid for writer in writers]
    url = f"http://127.0.0.1:{port}"
    async with service("api", **variables) as first:
        await first.says("listening")
        by_line, as_json = [await start("follow", *gids, *option, url=url) for option in ((), ("--json",))]
        for writer in writers:
            await writer.append("one\n", "two")
        assert by_line.stdout is not None
        assert as_json.stdout is not None
        async with asyncio.timeout(DEADLINE):
            first_lines = [await by_line.stdout.readline() for _ in writers]
            events = [json.loads(await as_json.stdout.readline()) for _ in range(4 * 3)]
        first.send(signal.SIGKILL)
        await first.wait()
    await writers[0].finish()
    await writers[1].finish("failed", b'{"error":{"message":"It broke.","type":"server_error","code":"c"}}')
    async with service("api", **variables):
        await broker.cancel(gids[2])
        lines, rest = await finish(by_line), await finish(as_json)
    assert (lines.code, rest.code) == (1, 1)
    printed = [line.decode() for line in first_lines] + lines.out.splitlines(keepends=True)
    assert sorted(printed) == sorted(f"{gid[-8:]} | {text}\n" for gid in gids for text in ("one", "two"))
    assert f"{gids[1][-8:]}: failed: It broke." in lines.err
    events += map(json.loads, rest.out.splitlines())
    async with service("api", **variables) as again:
        url = (await again.says(r"listening on (http://\S+)"))[1]
        for gid, done in zip(
            gids, await gather(*(tokencast("follow", gid, "--json", url=url) for gid in gids)), strict=True
        ):
            alone = [json.loads(line) for line in done.out.splitlines()]
            assert [event for event in events if event["generation"] == gid] == [
                {"generation": gid, **event} for event in alone
            ]
        wrong = await tokencast("follow", *gids, "--after", "0-1", url=url)
        assert (wrong.code, wrong.out) == (2, "")


async def test_ctrl_c_keeps_the_generation_and_prints_how_to_resume(api: Gateway, broker: Broker) -> None:
    writer = await start_generation(api, broker)
    await writer.append("Hello ")
    process = await start("follow", writer.gid, url=api.url)
    assert process.stdout is not None
    assert await process.stdout.readexactly(6) == b"Hello "
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert done.code == 130
    command = re.search(r"tokencast (follow \S+ --after \S+)", done.err)
    assert command is not None
    await writer.append("again")
    await writer.finish()
    assert await tokencast(*command[1].split(), url=api.url) == Done(0, "again\n", "")


async def test_a_follower_survives_a_crash_of_the_gateway(redis: EmbeddedRedis, broker: Broker) -> None:
    """The client reconnects by itself and continues at the exact event."""
    port = str(free_port())
    variables = {"REDIS_URL": redis.url, "PORT": port}
    writer = await Writer(broker.store.redis, (await broker.enqueue(request_body())).id).claim()
    await writer.append("One ")
    async with service("api", **variables) as first:
        await first.says("listening")
        process = await start("follow", writer.gid, url=f"http://127.0.0.1:{port}")
        assert process.stdout is not None
        assert await process.stdout.readexactly(4) == b"One "
        first.send(signal.SIGKILL)
        await first.wait()
    await writer.append("two")
    async with service("api", **variables):
        assert await process.stdout.readexactly(3) == b"two"
        await writer.finish()
        done = await finish(process)
    assert (done.code, done.out) == (0, "\n")
    assert "reconnecting" in done.err


@asynccontextmanager
async def scripted_server(responses: Sequence[bytes]) -> AsyncGenerator[tuple[str, list[str]]]:
    """Serve these bytes, one item per connection; yield the URL and the received requests."""
    waiting = list(responses)
    requests: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(waiting.pop(0))
        writer.close()

    async with tcp_server(answer) as address:
        yield f"http://{address}", requests


def header(request: str, name: str) -> str | None:
    found = re.search(rf"^{name}: (.*)\r$", request, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


async def test_a_lost_connection_is_resumed_after_the_last_complete_event() -> None:
    """Streams that break within an event, close before the end, or are refused because of load: the client
    continues."""
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    cut = stream + b"content-length: 9999\r\n\r\n"

    def event(number: int, text: str) -> bytes:
        data = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})
        return f"id: 7-{number}\nevent: chunk\ndata: {data}\n\n".encode()

    responses = [
        cut + event(1, "a") + event(2, "b") + event(3, "lost").rstrip(b"\n"),
        stream + b"\r\nretry: 5\n\n" + event(3, "c"),
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n",
        stream + b"\r\n: heartbeat\n\nid: 7-9\n\n",
        stream + b"\r\nid: 8-0\nevent: completed\ndata: {}\n\n",
    ]
    gid = "gen_01kbn2h8v010" + "0" * 22
    async with scripted_server(responses) as (url, requests):
        done = await tokencast("follow", gid, "--after", "7-0", url=url)
    assert (done.code, done.out) == (0, "abc\n")
    assert [header(request, "last-event-id") for request in requests] == [None, "7-2", "7-3", "7-3", "7-9"]
    assert ["?after=7-0 " in request for request in requests] == [True, False, False, False, False]


async def test_a_server_that_is_not_a_gateway_is_reported() -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>"
    gid = "gen_01kbn2h8v010" + "0" * 22
    async with scripted_server([page, page]) as (url, _):
        for command in (("follow", gid), ("ls",)):
            done = await tokencast(*command, url=url)
            assert (done.code, done.out) == (2, "")
            assert done.err == f"tokencast: The server at {url} is not Tokencast.\n"


async def test_the_help_names_every_command_and_exit_code() -> None:
    help_text, version, sim, unknown = await gather(
        tokencast("--help", url=""),
        tokencast("--version", url=""),
        tokencast("upstream-sim", "--help", url=""),
        tokencast("frobnicate", url=""),
    )
    for word in (
        "dev",
        "api",
        "worker",
        "enqueue",
        "follow",
        "replay",
        "ls",
        "show",
        "cancel",
        "upstream-sim",
        "Exit codes",
    ):
        assert word in help_text.out
    assert re.fullmatch(r"tokencast \d+\.\d+\.\d+\n", version.out)
    assert (sim.code, "--require-key" in sim.out) == (0, True), "the command has a help"
    assert unknown.code == 2


async def test_a_process_command_replaces_itself_with_the_process() -> None:
    """Signals and the exit code are those of the process."""
    process = await start("upstream-sim", "--port", "0", url="")
    assert process.stdout is not None
    assert b"ready" in await asyncio.wait_for(process.stdout.readline(), DEADLINE)
    process.send_signal(signal.SIGTERM)
    assert (await finish(process)).code == 0
    assert (await tokencast("upstream-sim", "--port", "x", url="")).code == 2

"""The `--help` of each command is correct: its examples run, and `--json` prints JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from broker.cli import cli
from broker.dev.embedded_redis import EmbeddedRedis
from tests.acceptance.cli.terminal import installed
from tests.acceptance.cli.test_cli import tokencast
from tests.support import DEADLINE, Gateway, clean_environment, gather, request_body

PROCESSES = {"api": "listening on", "worker": "ready", "upstream-sim": "ready", "dev": "Tokencast is ready"}
"""The line that each process prints when it is ready."""
COMMANDS = sorted(cli.commands.keys() - PROCESSES.keys())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with `tokencast` on it."""
    return installed(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory in which the examples run."""
    (tmp_path / ".config/fish/completions").mkdir(parents=True)
    (tmp_path / "README.md").write_text("Read this.\n")
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": request_body(model="sim")}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request))
    return tmp_path


async def examples(command: str) -> list[str]:
    told = await tokencast(command, "--help", url="")
    assert (told.code, told.err) == (0, "")
    _, _, listed = told.out.partition("Examples:\n")
    return [line.strip() for line in listed.splitlines()]


@contextlib.asynccontextmanager
async def shell(line: str, path: str, home: Path, **variables: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a line in a new bash, or in zsh for its completion; processes that are still running at the end are
    terminated."""
    command = ("bash", "--norc", "-o", "pipefail", "-c", line)
    if "completion zsh" in line:
        command = ("zsh", "-fc", f"autoload -U compinit; compinit -u; {line}")
    process = await asyncio.create_subprocess_exec(
        *command,
        env=clean_environment(PATH=path, HOME=str(home), **variables),
        cwd=home,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), DEADLINE)


async def ended_generation(api: Gateway) -> str:
    gid = (await api.create(request_body(model="sim")))["id"]
    await api.ended(gid)
    return gid


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_examples_of_a_command_run(running: Gateway, command: str, path: str, home: Path) -> None:
    lines = await examples(command)
    assert lines, "the command has examples"
    if shutil.which("zsh") is None:  # covered by the tests of the completion
        lines = [line for line in lines if "completion zsh" not in line]

    async def run(line: str) -> None:
        for _ in re.findall(r"\bID\b", line):
            line = re.sub(r"\bID\b", await ended_generation(running), line, count=1)
        async with shell(line, path, home, TOKENCAST_URL=running.url) as process:
            out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        leaves = "| head" in line and process.returncode == 128 + signal.SIGPIPE
        assert process.returncode == 0 or leaves, (line, out, err)
        assert err == b"" or "--follow" in line, (line, err)
        assert out or re.search("> |eval|latest| -o ", line), line
        assert b"\x1b" not in out

    try:
        await gather(*map(run, lines))
    finally:
        for paused in ({}, {"upstream": "default"}, {"tenant": "anna"}):
            await running.http.post("/v1/queue/resume", json=paused)


@pytest.mark.parametrize("command", PROCESSES)
async def test_the_examples_of_a_process_start_it(
    command: str, path: str, home: Path, redis: EmbeddedRedis, sim: str
) -> None:
    lines = await examples(command)
    assert lines, "the command has examples"
    upstream = {} if command == "dev" else {"REDIS_URL": redis.url, "OPENAI_BASE_URL": sim, "OPENAI_API_KEY": "key"}
    for line in lines:
        if "--check" in line:
            continue  # it checks a running worker, and none is running here
        elsewhere = re.sub(r"8\d{3}", "0", line) if re.search(r"8\d{3}", line) else f"PORT=0 {line}"
        if command == "upstream-sim" and "--port" not in line:
            elsewhere = f"{line} --port 0"
        async with shell(elsewhere, path, home, **upstream) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            stream = process.stdout if command in ("dev", "upstream-sim") else process.stderr
            async with asyncio.timeout(DEADLINE):
                while PROCESSES[command] not in (said := (await stream.readline()).decode()):
                    assert said, f"{elsewhere} ended"


async def test_json_output_is_one_object_per_line(running: Gateway) -> None:
    """Errors are lines of text on stderr, also with `--json`."""
    gids = [await ended_generation(running) for _ in range(3)]
    shapes: list[tuple[tuple[str, ...], set[str]]] = [
        (("enqueue", "hi", "--model", "sim"), {"id", "status", "cursor", "text"}),
        (("enqueue", "hi", "--model", "sim", "--follow"), {"id", "event", "data"}),
        (("follow", gids[0]), {"id", "event", "data"}),
        (("follow", *gids), {"generation", "id", "event", "data"}),
        (("replay", gids[0], "--speed", "1000"), {"id", "event", "data"}),
        (("ls", "--limit", "2"), {"id", "status", "cursor", "usage"}),
        (("top", "--once"), {"overview", "generations"}),
        (("show", gids[0]), {"id", "status", "text", "choices"}),
        (("cancel", gids[0]), {"id", "status", "text", "choices"}),
        (("token", gids[0]), {"token", "expires_at", "events_url"}),
        (("retry", gids[0]), {"id", "status", "retry_of"}),
        (("retry", "--status", "completed", "--dry-run"), {"matched", "retried", "data", "has_more"}),
        (("queue",), {"upstreams", "queue", "next"}),
        (("resume",), {"depth", "levels", "paused"}),
        (("upstreams",), {"name", "circuit", "in_flight"}),
        (("upstreams", "set", "default", "--rpm", "none"), {"name", "circuit", "in_flight"}),
        (("models",), {"id", "object"}),
        (("key", "anna"), {"key", "entry"}),
    ]

    async def check(command: tuple[str, ...], shape: set[str]) -> None:
        done = await tokencast(*command, "--json", url=running.url)
        assert done.code == 0, (command, done)
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert lines
        assert all(shape <= line.keys() for line in lines), (command, lines)

    await gather(*(check(*one) for one in shapes))
    await check(("delete", gids[1], gids[2]), {"id", "deleted"})
    failed = await tokencast("show", gids[1], "--json", url=running.url)
    assert (failed.code, failed.out) == (4, "")
    assert re.fullmatch(r"tokencast: .+\n", failed.err)


async def test_every_command_with_output_has_a_json_option() -> None:
    for name in set(COMMANDS) - {"completion", "batch"}:  # the output of `batch` is JSON
        assert "--json" in {option for parameter in cli.commands[name].params for option in parameter.opts}, name


async def test_one_bad_id_does_not_stop_the_others(running: Gateway) -> None:
    """The exit code is the lowest of those that failed."""
    first, last = [await ended_generation(running) for _ in range(2)]
    unknown = "gen_01kbn2h8v010" + "0" * 22
    text = (await running.get(first))["text"]
    waiting = (await running.create(request_body(model="sim", tokencast={"delay_seconds": 600})))["id"]
    followed, shown, tokens, retried = await gather(
        *(tokencast(command, first, unknown, "x", last, url=running.url) for command in ("follow", "show", "token")),
        tokencast("retry", first, unknown, waiting, last, url=running.url),
    )
    assert followed.code == 4
    assert followed.out.count(" | ") == 2 * len(text.splitlines())
    assert f"{unknown[-8:]}: deleted" in followed.err
    assert (shown.code, shown.out.count(text)) == (4, 2)
    assert (tokens.code, [line.split()[1] for line in tokens.out.splitlines() if line.startswith("id ")]) == (
        4,
        [first, last],
    )
    assert (retried.code, len(retried.out.splitlines())) == (2, 2), "not_ended is a refusal"
    done = await tokencast("delete", first, unknown, last, url=running.url)
    assert (done.code, done.out) == (4, f"{first}\n{last}\n")
    assert done.err == f"tokencast: {unknown}: No such generation.\n"


async def test_a_list_into_a_closed_pipe_dies_of_sigpipe(running: Gateway, path: str, home: Path) -> None:
    """It dies of SIGPIPE without a message (`true` reads nothing). Without stdout it succeeds."""
    await ended_generation(running)
    line = "tokencast ls | true; echo ${PIPESTATUS[0]}; tokencast --help | true; echo ${PIPESTATUS[0]}"
    line += "; tokencast models >&-; echo $?"
    async with shell(line, path, home, TOKENCAST_URL=running.url) as process:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert (out.split(), err) == ([b"141", b"141", b"0"], b"")

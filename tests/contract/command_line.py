"""Area: the `tokencast` command. Only the form of help and error messages is recorded."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.contract.recorder import Recorder
from tests.contract.stage import KEYS, Stage, ended, free_port, prompt, running
from tests.support import DEADLINE, ROOT, clean_environment, service

COMMANDS = (
    "", "dev", "api", "worker", "upstream-sim", "enqueue", "follow", "replay", "ls", "top", "show", "cancel", "delete",
    "token", "models", "key", "completion", "retry", "batch", "queue", "pause", "resume", "upstreams", "upstreams set",
    "settings",
)  # fmt: skip


PROGRAM = """
import gc, json, os, sys, tempfile
from broker.cli import main

def run(arguments, environment, given):
    files = [tempfile.TemporaryFile() for _ in range(3)]
    files[0].write(given.encode("latin-1"))
    files[0].seek(0)
    child = os.fork()
    if child == 0:
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        try:
            main()
        except SystemExit as done:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(done.code or 0)  # skips Python's shutdown
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in files:
        file.seek(0)
    return [code, files[1].read().decode(), files[2].read().decode()]

gc.freeze()
requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in requests:
    print(json.dumps(run(*json.loads(line))), file=answers, flush=True)
"""
"""A program that runs each command in a fork, in a tenth of the time of a new Python process."""


@dataclass(frozen=True)
class Run:
    """A command and its result."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str


class Shell:
    """Runs commands with the environment of one client."""

    def __init__(self, process: asyncio.subprocess.Process, environment: dict[str, str]) -> None:
        self._process = process
        self._environment = environment

    async def run(self, *arguments: str, given: bytes = b"", **variables: str) -> Run:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [arguments, {**self._environment, **variables}, given.decode("latin-1")]
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            code, out, err = json.loads(await self._process.stdout.readline())
        return Run(arguments, code, out, err)

    async def all(self, *commands: tuple[str, ...]) -> list[Run]:
        return [await self.run(*arguments) for arguments in commands]


@asynccontextmanager
async def shell_of(**variables: str) -> AsyncGenerator[Shell, None]:
    environment = clean_environment(COLUMNS="100", **variables)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, cwd=ROOT, env=environment, limit=1 << 24,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Shell(process, environment)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def record(stage: Stage, rec: Recorder) -> None:
    async with shell_of(TOKENCAST_URL=stage.keyed.url, TOKENCAST_API_KEY=KEYS["command"]) as shell:
        for helped in await shell.all(*((*command.split(), "--help") for command in COMMANDS)):
            rec.note(" ".join(("tokencast", *helped.arguments)), [f"exit code {helped.code}", *help_form(helped.out)])
        await _enqueue(rec, shell)
        await _read(stage, rec, shell)
        await _change(stage, rec, shell)
        await _others(stage, rec, shell)
    async with service("broker", "--version") as process:
        code = await process.wait()
        note(rec, Run(("python", "-m", "broker", "--version"), code, process.output, ""))


def note(rec: Recorder, run: Run, *, form: bool = False) -> None:
    """`form`: record only the number of lines on stdout."""
    shown = f"<{len(run.out.splitlines())} lines>" if form else printed(run.out)
    lines = [f"exit code {run.code}", "stdout:", shown.rstrip("\n"), "stderr:", *error_form(run.err)]
    program = () if run.arguments[0] == "python" else ("tokencast",)
    rec.note(" ".join((*program, *run.arguments)), lines)


def printed(text: str) -> str:
    """Mask ages, durations, times, tokens and the width of columns."""
    text = re.sub(r"^(token +)\S+$", r"\1<token>", text, flags=re.MULTILINE)
    text = re.sub(r":[0-9a-f]{64}\b", ":<hash>", text)
    text = re.sub(r"(?m)^(error +).* \((\w+)\)$", r"\1<text> (\2)", text)
    text = re.sub(r"\b\d+\.\d{3} s\b", "<duration>", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<moment>", text)
    text = re.sub(r"(?<=  )\d+[smhd]\b", "<age>", text)
    text = re.sub(r"^tokencast \d+\.\d+\S*$", "tokencast <version>", text, flags=re.MULTILINE)
    return re.sub(r"(?<=\S) {2,}", "  ", text) if not text.startswith("{") else text


def error_form(text: str) -> list[str]:
    """The beginning of the first line, the part on which programs may rely."""
    first = text.partition("\n")[0]
    if re.fullmatch(r"gen_\w{34}", first) or not first:
        return [first]
    known = re.match(r"Usage: .*|usage: \S+ \S+|Error: |tokencast( \w+)?: |\S*gen_\w{34}\S* ?", first)
    return [known[0].rstrip() + " <text>" if known else "<text>"]


def help_form(text: str) -> Iterator[str]:
    """The usage line, and the names of options and commands."""
    usage, _, rest = text.partition("\n\n")
    yield " ".join(usage.split())
    for line in rest.splitlines():
        if re.match(r"(Options|options|Commands|positional arguments):", line):
            yield line.lower()
        elif found := re.match(r"  (-[\w-].*?|[a-z][\w-]+)(?=  |$)", line):
            option = found[1]
            if option.startswith("-") or (line.startswith(f"  {option}  ") and option in COMMANDS):
                yield f"  {option}"


async def _enqueue(rec: Recorder, shell: Shell) -> None:
    text = prompt("length=2")["messages"][0]["content"]
    sim = ("--model", "sim")
    key = ("--idempotency-key", "order-17")
    runs = [
        await shell.run("enqueue", text, *sim),
        await shell.run("enqueue", *sim, "--json", "--metadata", "a=1", "--metadata", "b=2", "--system", "Hm.", text),
        await shell.run("enqueue", text, *sim, *key),
        await shell.run("enqueue", text, *sim, *key),
        await shell.run("enqueue", "other", *sim, *key),
        await shell.run("enqueue", text, *sim, "--follow"),
        await shell.run("enqueue", text, *sim, "--follow", "--json"),
        await shell.run("enqueue", *sim, given=text.encode()),
        await shell.run("enqueue", "-", *sim, "--json", given=text.encode()),
        await shell.run("enqueue", *sim, given=b"\n"),
        await shell.run("enqueue", *sim, given=b"\xff"),
        await shell.run("enqueue", "x", "--model", "unheard-of"),
        await shell.run("enqueue", "x", *sim, "--metadata", "a"),
    ]
    for run in runs:
        note(rec, run)


async def _read(stage: Stage, rec: Recorder, shell: Shell) -> None:
    api = stage.of("command")
    done = await ended(rec, api, "done", "length=3", metadata={"a": "b"})
    failed = await ended(rec, api, "failed", "fault=truncate at=2")
    cancelled = await running(rec, api, "cancelled")
    await api.http.post(f"/v1/generations/{cancelled}/cancel")
    gone = await ended(rec, api, "gone", "")
    await api.http.delete(f"/v1/generations/{gone}")
    attempt, _, last = (await api.get(done))["cursor"].partition("-")
    unknown = f"gen_{'0' * 10}10{'0' * 22}"
    commands: list[tuple[str, ...]] = [
        (name, gid, *more)
        for name in ("follow", "show")
        for gid in (done, failed, cancelled)
        for more in ((), ("--json",))
    ]
    commands += [(name, gid) for name in ("follow", "show") for gid in (gone, unknown, "nothing")]
    commands += [
        ("follow", done, "--after", f"{attempt}-2"),
        ("follow", done, "--after", f"{attempt}-{last}"),
        ("follow", done, "--after", "malformed"),
        ("follow", done, cancelled, "--after", "0-1"),
        ("follow",),
        ("replay", done, "--speed", "1000"),
        ("replay", done, "--speed", "1000", "--json", "--after", f"{attempt}-5"),
        ("replay", done, "--speed", "0"),
        ("ls", "--limit", "3"),
        ("ls", "--limit", "3", "--json"),
        ("ls", "--status", "failed"),
        ("ls", "--status", "queued"),
        ("ls", "--status", "queued", "--json"),
        ("ls", "--status", "done"),
        ("ls", "--limit", "0"),
        ("token", done),
        ("token", done, "--ttl", "60", "--json"),
        ("token", done, "--ttl", "0"),
        ("token", unknown),
        ("models", "--json"),
    ]
    for run in await shell.all(*commands):
        note(rec, run)
    note(rec, await shell.run("models"), form=True)
    several = await shell.run("follow", done, failed, "--json")
    rec.note("tokencast follow, of two", [f"exit code {several.code}", *sorted(several.out.splitlines())])


async def _change(stage: Stage, rec: Recorder, shell: Shell) -> None:
    api = stage.of("command")
    one, two, done = (
        await running(rec, api, "one"),
        await running(rec, api, "two"),
        await ended(rec, api, "ended", ""),
    )
    for arguments in (
        ("cancel", one), ("cancel", one), ("cancel", two, "--json"), ("cancel", done), ("delete", one),
        ("delete", one), ("delete", two, done, "--json"), ("cancel", done), ("delete", "nothing"), ("delete",),
    ):  # fmt: skip
        note(rec, await shell.run(*arguments))


async def _others(stage: Stage, rec: Recorder, shell: Shell) -> None:
    nowhere = {"TOKENCAST_URL": f"http://127.0.0.1:{free_port()}"}
    redis = {"REDIS_URL": stage.redis.url}
    for arguments, variables in (
        (("--version",), {}),
        (("key", "anna"), {}),
        (("key", "anna", "--json"), {}),
        (("key", "a b"), {}),
        (("nothing",), {}),
        (("ls", "--nothing"), {}),
        (("ls",), {"TOKENCAST_API_KEY": "wrong"}),
        (("ls",), {"TOKENCAST_URL": "nowhere"}),
        (("ls",), nowhere),
        (("models", "--json"), nowhere),
        (("worker", "--check"), redis),
        (("worker",), {"TOKENCAST_SLOTS": "0", **redis}),
        (("api",), {"HOST": "0.0.0.0", "PORT": "0", **redis}),
        (("api",), {"PORT": "none", **redis}),
        (("upstream-sim", "--port", "none"), {}),
        (("top", "--nothing"), {}),
    ):
        note(rec, await shell.run(*arguments, **variables))
    for name in ("bash", "zsh", "fish"):
        note(rec, await shell.run("completion", name), form=True)
    note(rec, await shell.run("completion", "nothing"))

"""Shell completion, in real shells."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import pytest

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.cli.terminal import installed, terminal
from tests.acceptance.cli.test_cli import scripted_server
from tests.support import DEADLINE, Gateway, clean_environment, gateway, gather, request_body

BASH = """
eval "$(tokencast completion bash)"
COMP_WORDS=({words} {prefix}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
$(complete -p tokencast | sed 's/.* -F \\([^ ]*\\) .*/\\1/') tokencast
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with `tokencast` on it."""
    return installed(tmp_path_factory.mktemp("bin"))


async def completions(words: str, path: str, url: str, prefix: str = "''") -> list[str]:
    """The completions of bash after these words, for this prefix of the last word."""
    return await lines("bash", "--norc", "-c", BASH.format(words=words, prefix=prefix), path=path, url=url)


async def lines(*command: str, path: str, url: str, **variables: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=clean_environment(PATH=path, TOKENCAST_URL=url, **variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert (process.returncode, err) == (0, b"")
    return out.decode().split("\n")[:-1]


async def test_bash_completes_commands_options_and_ids(api: Gateway, path: str) -> None:
    gids = [(await api.create())["id"] for _ in range(2)]
    await api.create(request_body(tokencast={"group": "nightly"}))
    gids.append((await api.create(request_body(tokencast={"group": "a b"})))["id"])
    commands, options, statuses, models, ids, one, groups, upstreams, limits, sub = await gather(
        completions("tokencast", path, api.url),
        completions("tokencast follow", path, api.url, "--j"),
        completions("tokencast ls --status", path, api.url, "c"),
        completions("tokencast enqueue --model", path, api.url),
        completions("tokencast follow", path, api.url),
        completions(f"tokencast replay --json {gids[0]}", path, api.url, gids[0]),
        completions("tokencast ls --group", path, api.url),
        completions("tokencast pause --upstream", path, api.url),
        completions("tokencast upstreams set default --rpm", path, api.url),
        completions("tokencast upstreams", path, api.url, "s"),
    )
    assert {"ls", "top", "follow", "dev", "completion", "batch", "queue", "retry"} <= set(commands)
    assert options == ["--json"]
    assert statuses == ["completed", "cancelled"]
    assert models == ["gabforge-coder", "sim", "m"], "names without patterns"
    assert (ids[0], ids[2:4]) == (gids[2], gids[1::-1]), "the newest first"
    assert (groups, upstreams, limits, sub) == (["nightly"], ["default"], ["none"], ["set"])
    assert one == [""], "the command takes one ID, which is already given"


async def test_without_a_gateway_there_are_no_completions(path: str) -> None:
    """A closed port, a silent server with a short timeout, a server that is not a gateway, an invalid address."""
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    async with scripted_server([page, page]) as (other, _):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            ports = (free_port(), silent.getsockname()[1])
            urls = (*(f"http://127.0.0.1:{port}" for port in ports), other, "nonsense")
            cases = [(words, url) for words in ("tokencast show", "tokencast enqueue --model") for url in urls]
            found = await gather(*(completions(words, path, url) for words, url in cases))
    assert found == [[""]] * len(cases)


async def test_model_names_with_shell_syntax_are_not_completed(redis: EmbeddedRedis, path: str) -> None:
    async with gateway(redis.url, TOKENCAST_MODELS="good,a;b,$(c),d e") as api:
        listed = (await api.http.get("/v1/models")).json()["data"]
        assert len(listed) == 4
        assert await completions("tokencast enqueue --model", path, api.url) == ["good"]


@pytest.mark.shells
async def test_fish_completes_commands_and_ids(api: Gateway, path: str, tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("skipped: fish is not installed")
    gid = (await api.create())["id"]
    commands = "tokencast completion fish | source; complete -C 'tokencast show gen_'; complete -C 'tokencast comple'"
    found = await lines("fish", "--no-config", "-c", commands, path=path, url=api.url, HOME=str(tmp_path))
    words = [line.split()[0] for line in found]
    assert gid in words
    assert words[-1] == "completion"


@pytest.mark.shells
async def test_zsh_completes_a_status(api: Gateway, path: str, tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("skipped: zsh is not installed")
    async with terminal("zsh", "-f", url=api.url, PATH=path, HOME=str(tmp_path)) as shown:
        shown.press("autoload -U compinit; compinit -u; eval \"$(tokencast completion zsh)\"; PROMPT='ready> '\n")
        await shown.shows(lambda: any(line.startswith("ready>") for line in shown.lines))
        shown.press("tokencast ls --status q\t")
        await shown.shows("tokencast ls --status queued")
        shown.press("\x15exit\n")
        assert await shown.end() == 0

"""Shell completion, in real shells."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import pytest

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.cli.terminal import installed, terminal
from tests.acceptance.cli.test_cli import script
from tests.support import DEADLINE, Gateway, clean_environment, gateway, gather

BASH = """
eval "$(tokencast completion bash)"
COMP_WORDS=({words} {begun}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
$(complete -p tokencast | sed 's/.* -F \\([^ ]*\\) .*/\\1/') tokencast
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with `tokencast` on it."""
    return installed(tmp_path_factory.mktemp("bin"))


async def offered(words: str, path: str, url: str, begun: str = "''") -> list[str]:
    """Return the completions of bash after these words, for this beginning of the last one."""
    return await lines("bash", "--norc", "-c", BASH.format(words=words, begun=begun), path=path, url=url)


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


async def test_bash_is_told_what_there_is(api: Gateway, path: str) -> None:
    gids = [(await api.create())["id"] for _ in range(2)]
    commands, options, statuses, models, ids, one = await gather(
        offered("tokencast", path, api.url),
        offered("tokencast follow", path, api.url, "--j"),
        offered("tokencast ls --status", path, api.url, "c"),
        offered("tokencast enqueue --model", path, api.url),
        offered("tokencast follow", path, api.url),
        offered(f"tokencast cancel --json {gids[0]}", path, api.url, gids[0]),
    )
    assert {"ls", "top", "follow", "dev", "completion"} <= set(commands)
    assert options == ["--json"]
    assert statuses == ["completed", "cancelled"]
    assert models == ["gabforge-coder", "sim", "m"], "names, no patterns"
    assert ids[:2] == gids[::-1], "the newest first"
    assert one == [""], "there is one ID, and it is there"


async def test_where_nobody_answers_nothing_is_said(path: str) -> None:
    """No gateway; a silent one, with a short time-out; another server; an invalid address."""
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    async with script([page, page]) as (other, _):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            ports = (free_port(), silent.getsockname()[1])
            urls = (*(f"http://127.0.0.1:{port}" for port in ports), other, "nonsense")
            asked = [(words, url) for words in ("tokencast show", "tokencast enqueue --model") for url in urls]
            found = await gather(*(offered(words, path, url) for words, url in asked))
    assert found == [[""]] * len(asked)


async def test_a_name_that_means_something_to_a_shell_is_not_offered(redis: EmbeddedRedis, path: str) -> None:
    async with gateway(redis.url, TOKENCAST_MODELS="good,a;b,$(c),d e") as api:
        listed = (await api.http.get("/v1/models")).json()["data"]
        assert len(listed) == 4
        assert await offered("tokencast enqueue --model", path, api.url) == ["good"]


@pytest.mark.shells
async def test_fish_is_told_what_there_is(api: Gateway, path: str, tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("not run: there is no fish")
    gid = (await api.create())["id"]
    script = "tokencast completion fish | source; complete -C 'tokencast show gen_'; complete -C 'tokencast comple'"
    found = await lines("fish", "--no-config", "-c", script, path=path, url=api.url, HOME=str(tmp_path))
    words = [line.split()[0] for line in found]
    assert gid in words
    assert words[-1] == "completion"


@pytest.mark.shells
async def test_zsh_completes_what_is_typed(api: Gateway, path: str, tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("not run: there is no zsh")
    async with terminal("zsh", "-f", url=api.url, PATH=path, HOME=str(tmp_path)) as shown:
        shown.press("autoload -U compinit; compinit -u; eval \"$(tokencast completion zsh)\"; PROMPT='ready> '\n")
        await shown.shows(lambda: any(line.startswith("ready>") for line in shown.lines))
        shown.press("tokencast ls --status q\t")
        await shown.shows("tokencast ls --status queued")
        shown.press("\x15exit\n")
        assert await shown.end() == 0

"""Mistakes in the environment end a program with one line and exit status 2."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.cli.test_cli import Done, finish
from tests.acceptance.cli.test_dev import dev
from tests.servers.certificates import make_authority, make_certificate, needs_openssl, server_context
from tests.servers.forked import start_module
from tests.servers.tcp import tcp_server
from tests.support import Gateway, clean_environment, gateway, gather, service, worker
from tokencast_client import Client, Generation, Unreachable

PROGRAMS = {
    "tokencast api": ("api",),
    "tokencast api --processes": ("api", "--processes", "2"),
    "tokencast worker": ("worker",),
    "tokencast": ("broker", "dev"),
}
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


async def client(*arguments: str, **variables: str) -> Done:
    """Run a client command to its end."""
    here = {name: value for name, value in clean_environment().items() if name.upper() not in PROXIES}
    return await finish(await start_module("broker", *arguments, environment={**here, **variables}))


async def refusal(program: str, variables: dict[str, str]) -> str:
    """The line with which the program refuses to start."""
    settings = {"PORT": "0", "REDIS_URL": "redis://127.0.0.1:9/0", **variables}
    async with service(*PROGRAMS[program], **settings) as process:
        assert await process.wait() == 2, process.output
    assert len(process.lines) == 1, process.output
    assert "unter2" not in process.output
    return process.lines[0].removeprefix(f"{program.removesuffix(' --processes')}: ")


MISTAKES = {
    "TOKENCAST_SLOTS: Input should be a valid integer": {"TOKENCAST_SLOTS": "many"},
    "TOKENCAST_LEASE: must be at most": {"TOKENCAST_LEASE": "inf"},
    "OPENAI_API_KEY: contains a line break": {"OPENAI_API_KEY": "Hunter2\r"},
    "OPENAI_BASE_URL: must not contain a user name or a password": {"OPENAI_BASE_URL": "http://u:Hunter2@127.0.0.1/v1"},
    "TOKENCAST_UPSTREAMS[0]: unknown field `base-url`; did you mean `base_url`?": {
        "TOKENCAST_UPSTREAMS": json.dumps([{"name": "a", "base-url": "http://a", "base_url": "http://a"}])
    },
}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_all_mistakes_are_in_one_line(program: str) -> None:
    everything = {name: value for variables in MISTAKES.values() for name, value in variables.items()}
    line, keys, entry = await gather(
        refusal(program, everything),
        refusal(program, {"TOKENCAST_API_KEYS": "anna:Hunter2"}),
        refusal(
            program,
            {
                "TOKENCAST_UPSTREAMS": '[{"name": "a", "base_url": "http://a", "api_key_env": "A_KEY"}]',
                "A_KEY": "Hun ter2",
            },
        ),
    )
    for message in MISTAKES:
        assert message in line
    assert keys.startswith("TOKENCAST_API_KEYS: entry 1 is not `tenant:sha256-of-key`")
    assert entry.startswith("A_KEY: contains white space")


async def test_an_unknown_setting_is_one_warning(redis: EmbeddedRedis, sim: str, api: Gateway, tmp_path: Path) -> None:
    wrong = {"TOKENCAST_SLTOS": "5"}
    message = "TOKENCAST_SLTOS is not a setting; did you mean TOKENCAST_SLOTS?"
    async with (
        gateway(redis.url, **wrong) as one,
        gateway(redis.url, TOKENCAST_PROCESSES="2", **wrong) as two,
        worker(redis.url, sim, **wrong) as working,
        dev(tmp_path, **wrong) as everything,
    ):
        done = await client("ls", TOKENCAST_URL=api.url, **wrong)
        assert (done.code, done.err) == (0, f"tokencast: {message}\n")
        await everything.says("Ctrl-C stops everything")
        for process in (one.process, two.process, working, everything):
            assert process.output.count(message) == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TOKENCAST_API_KEY": "Hunter2 "}, "TOKENCAST_API_KEY: has white space before or after the key"),
        ({"TOKENCAST_API_KEY": "Hunter2\r"}, "TOKENCAST_API_KEY: contains a line break"),
        ({"TOKENCAST_API_KEY": "Hunter2é"}, "TOKENCAST_API_KEY: contains a character that is not valid in a key"),
        (
            {"TOKENCAST_URL": "http://u:Hunter2@127.0.0.1:1"},
            "TOKENCAST_URL: must not contain a user name or a password",
        ),
        ({"TOKENCAST_URL": "http://u:Hunter2#x@127.0.0.1:1"}, "TOKENCAST_URL: must not have a query"),
        ({"TOKENCAST_URL": "http://127.0.0.1:1/v1"}, "TOKENCAST_URL: must not end with `/v1`"),
        ({"TOKENCAST_URL": "http://127.0.0.1:1/v1/"}, "TOKENCAST_URL: must not end with `/v1`"),
        ({"TOKENCAST_URL": "127.0.0.1:8000"}, "TOKENCAST_URL: must begin with http:// or https://"),
        (
            {"TOKENCAST_URL": "http://gateway.example", "ALL_PROXY": "socks://u:Hunter2@127.0.0.1:1"},
            "ALL_PROXY: a proxy URL must begin with",
        ),
        (
            {"TOKENCAST_URL": "http://gateway.example", "all_proxy": "http://u:Hunter2#@127.0.0.1:1"},
            "all_proxy: a proxy URL must begin with",
        ),
        (
            {"TOKENCAST_URL": "http://gateway.example", "HTTP_PROXY": f"http://u:Hunter2@127.0.0.1:{free_port()}"},
            "no response from http://gateway.example through the proxy of HTTP_PROXY",
        ),
        ({"TOKENCAST_URL": "https://127.0.0.1:1", "SSL_CERT_FILE": "/nowhere"}, "SSL_CERT_FILE: No such file"),
    ],
)
async def test_a_client_command_reports_a_mistake_in_one_line(variables: dict[str, str], message: str) -> None:
    done = await client("ls", **variables)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert done.err.startswith(f"tokencast: {message}")
    assert "unter2" not in done.err


@asynccontextmanager
async def proxy() -> AsyncGenerator[tuple[str, list[str]], None]:
    """A proxy that answers each request itself like a gateway without generations; yields its address and the received
    requests."""
    received: list[str] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        received.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = b'{"object": "list", "data": [], "has_more": false}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        writer.close()

    async with tcp_server(serve) as address:
        yield address, received


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def listed_generations(url: str) -> list[Generation]:
    """List generations with the client of the commands."""

    def ask() -> list[Generation]:
        with Client(url, "k", max_retries=0) as opened:
            return list(opened.list(limit=1))

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", "socks5://", "socks://", ""])
async def test_a_gateway_on_this_machine_is_called_without_a_proxy(
    api: Gateway, monkeypatch: pytest.MonkeyPatch, no_proxies: None, variable: str, scheme: str
) -> None:
    """No proxy receives the key, even if its variable is wrong."""
    async with proxy() as (address, received):
        monkeypatch.setenv(variable, f"{scheme}{address}")
        await listed_generations(api.url)
        await listed_generations(f"http://localhost:{api.url.rpartition(':')[2]}")
        assert received == []


async def test_other_gateways_are_called_through_the_proxy(monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> None:
    async with proxy() as (address, received):
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        monkeypatch.setenv("HTTPS_PROXY", "socks://nonsense")  # for URLs of the other scheme
        assert await listed_generations("http://gateway.example") == []
        assert [request.split()[1].partition("?")[0] for request in received] == [
            "http://gateway.example/v1/generations"
        ]
        for spared in ("gateway.example", ".example", "*.example", "*"):
            monkeypatch.setenv("NO_PROXY", spared)
            with pytest.raises(Unreachable, match=r"no gateway at http://gateway\.example"):
                await listed_generations("http://gateway.example")
        assert len(received) == 1


@needs_openssl
async def test_a_tls_failure_is_reported_as_such(api: Gateway, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    make_certificate(tmp_path, authority)
    host, port = api.url.removeprefix("http://").split(":")

    async def relay(reader: StreamReader, writer: StreamWriter) -> None:
        """Forward one request and one response."""
        request = await reader.readuntil(b"\r\n\r\n")
        from_gateway, to_gateway = await asyncio.open_connection(host, int(port))
        to_gateway.write(re.sub(rb"(?i)connection: [\w-]+", b"connection: close", request))
        writer.write(await from_gateway.read())
        writer.close()
        to_gateway.close()
        await to_gateway.wait_closed()

    async with tcp_server(relay, tls=server_context(tmp_path)) as address:
        url = f"https://{address}"
        strange, trusted, plain = await gather(
            client("ls", TOKENCAST_URL=url),
            client("ls", TOKENCAST_URL=url, SSL_CERT_FILE=str(authority)),
            client("ls", TOKENCAST_URL=api.url.replace("http:", "https:")),
        )
    assert strange.code == plain.code == 2
    assert strange.err.startswith(f"tokencast: the gateway at {url}'s certificate is not trusted: ")
    assert (trusted.code, trusted.err) == (0, "")
    secure = api.url.replace("http:", "https:")
    assert plain.err == f"tokencast: the gateway at {secure} does not speak TLS (https://)\n"


UNEXPECTED = ["[]", "null", '{"data":[1]}', '{"data":[{"name":"x"}],"has_more":false}', '{"id":7}']


async def test_a_service_that_is_not_tokencast_is_reported_in_one_line() -> None:
    """For any JSON in its responses."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    gid = "gen_" + "0" * 10 + "10" + "0" * 22
    async with tcp_server(answer) as address:
        url = f"http://{address}"
        for body in UNEXPECTED:
            commands = (("ls",), ("models",), ("enqueue", "x"), ("show", gid), ("token", gid))
            answered = await gather(*(client(*command, TOKENCAST_URL=url) for command in commands))
            for command, done in zip(commands, answered, strict=True):
                assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), (body, command, done.err)
                assert "is not Tokencast" in done.err


async def test_dev_reports_an_unusable_database_like_a_gateway(redis: EmbeddedRedis, tmp_path: Path) -> None:
    url = redis.url.removesuffix("/0") + "/99"
    async with dev(tmp_path, REDIS_URL=url) as everything:
        assert await everything.wait() == 2
        assert re.fullmatch(r"tokencast: Redis at .*/99: database 99 cannot be used: .*", everything.output)

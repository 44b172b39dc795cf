"""The HTTP client of a worker: keys, headers, cookies, certificates and lists of models."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker import Broker, connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.errors import Misconfigured
from broker.generation import Generation
from broker.runtime.http_tls import ssl_context
from broker.settings.upstreams import Limits, default_upstream
from tests.servers.certificates import make_authority, make_certificate, needs_openssl, server_context
from tests.servers.tcp import tcp_server
from tests.support import Service, service, wait_until
from worker.upstream.client import check_client

pytestmark = needs_openssl

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%sContent-Length: %d\r\n\r\n%s"
STREAM = b"".join(
    b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode() + b"\n\n"
    for delta, reason in (({"content": "Good morning"}, None), ({}, "stop"))
)
MODELS = b'{"object": "list", "data": [{"id": "one", "object": "model"}, {"id": "two", "object": "model"}]}'


def stream(*headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    body = STREAM + b"data: [DONE]\n\n"
    return ANSWER % (lines, len(body), body)


def whole(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class Server:
    """An upstream that records requests and returns prepared responses. Paths begin with the name of the entry."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.models: dict[str, bytes] = {}
        self.chat: dict[str, bytes] = {}
        self.url = ""

    def requests(self, entry: str, path: str = "") -> list[str]:
        return [head for head in self.heads if f"/{entry}/v1{path}" in head.partition("\r\n")[0]]

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    return
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
                self.heads.append(head)
                entry = head.split("/")[1]
                if "/models HTTP" in head:
                    writer.write(self.models.get(entry, whole(b"200 OK", MODELS)))
                else:
                    writer.write(self.chat.get(entry, stream()))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncGenerator[Server, None]:
    server = Server()
    async with tcp_server(server.serve, tls=tls) as address:
        server.url = f"{'https' if tls else 'http'}://{address}"
        yield server


def entry(name: str, url: str, **more: object) -> dict[str, object]:
    return {"name": name, "base_url": f"{url}/{name}/v1", "models": [f"{name}-*"], "api_key_env": "A_KEY", **more}


LISTS = {
    "list-404": ("status 404", whole(b"404 Not Found", b'{"detail": "canary"}')),
    "list-401": ("it refuses the key, status 401", whole(b"401 Unauthorized", b"canary")),
    "list-302": ("status 302", b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"),
    "list-page": ("the response is not a list of models", whole(b"200 OK", b"<html>canary")),
    "list-number": ("the response is not a list of models", whole(b"200 OK", b'{"data": [{"id": 7}]}')),
    "list-half": ("the response is not a list of models", whole(b"200 OK", b'{"data": [{"id": "\\ud83d"}]}')),
    "list-long": ("the list is larger than 4194304 bytes", whole(b"200 OK", b'["' + b"c" * 5_000_000 + b'"]')),
}
HEADERS = {"X-Team": "canary-team", "Authorization": "Basic ${A_LOGIN}", "User-Agent": "tokencast"}


@dataclass(frozen=True)
class Deployment:
    """A worker and its upstream servers."""

    plain: Server
    trusted: Server
    worker: Service


@pytest.fixture(scope="module")
async def deployment(
    redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Deployment, None]:
    ours, other, untrusted = (tmp_path_factory.mktemp(name) for name in ("ours", "other", "untrusted"))
    authority = make_authority(ours)
    make_certificate(ours, authority)
    make_certificate(other, authority, "DNS:elsewhere.example")
    make_certificate(untrusted, make_authority(untrusted))
    (ours / "login").write_text("canary-login\n")
    async with (
        serving() as plain,
        serving(server_context(ours)) as trusted,
        serving(server_context(other)) as misnamed,
        serving(server_context(untrusted)) as untrusted_server,
    ):
        plain.models = {name: answer for name, (_, answer) in LISTS.items()}
        plain.models["headers"] = whole(b"403 Forbidden", b'{"error": {"message": "Basic canary-login, no."}}')
        entries = [
            *(entry(name, plain.url) for name in ("cookies", "large", *LISTS)),
            entry("trusted", trusted.url),
            entry("misnamed", misnamed.url),
            entry("stranger", untrusted_server.url),
            entry("no-tls", plain.url.replace("http:", "https:")),
            entry("without-its-key", plain.url, api_key_env="B_KEY"),
            entry("keyless", plain.url, api_key_env=None),
            entry("headers", plain.url, api_key_env=None, headers=HEADERS),
        ]
        variables = {
            "TOKENCAST_UPSTREAMS": json.dumps(entries),
            "A_KEY": "k",
            "A_LOGIN_FILE": str(ours / "login"),
            "SSL_CERT_FILE": str(authority),
            "TOKENCAST_RETRY_BUDGET": "1",
        }
        async with service("worker", REDIS_URL=redis.url, **variables) as process:
            await process.says("ready: ")
            yield Deployment(plain, trusted, process)


async def run(broker: Broker, model: str) -> Generation:
    """Run a generation and return it after its end."""
    created = await broker.enqueue({"model": model, "messages": [{"role": "user", "content": "Say something."}]})
    async for _ in broker.follow(created.id):
        pass
    return await broker.get(created.id)


def value_of(head: str, name: str) -> str | None:
    found = re.search(rf"^{name}: (.*)\r$", head, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


async def test_cookies_of_a_response_are_not_sent_with_the_next_call(deployment: Deployment, broker: Broker) -> None:
    deployment.plain.chat["cookies"] = stream(b"Set-Cookie: backend=one; Path=/", b"Set-Cookie: session=first; Path=/")
    for _ in range(3):
        assert (await run(broker, "cookies-1")).text == "Good morning"
    requests = deployment.plain.requests("cookies", "/chat/completions")
    assert [value_of(head, "cookie") for head in requests] == [None] * 3


@pytest.mark.parametrize(("size", "error"), [(16, None), (60, None), (100, "bad_upstream_response")])
async def test_a_large_header_is_accepted_or_refused_after_one_call(
    deployment: Deployment, broker: Broker, size: int, error: str | None
) -> None:
    before = len(deployment.plain.requests("large", "/chat/completions"))
    deployment.plain.chat["large"] = stream(b"X-Trace: " + b"t" * (size * 1024))
    ended = await run(broker, "large-1")
    assert (ended.error or {}).get("code") == error
    assert len(deployment.plain.requests("large", "/chat/completions")) == before + 1


async def test_a_configured_private_authority_is_trusted(deployment: Deployment, broker: Broker) -> None:
    assert (await run(broker, "trusted-1")).text == "Good morning"


@pytest.mark.parametrize("name", ["misnamed", "stranger"])
async def test_an_untrusted_certificate_is_reported(deployment: Deployment, broker: Broker, name: str) -> None:
    error = (await run(broker, f"{name}-1")).error or {}
    assert error["code"] == "upstream_unreachable"
    assert error["message"].startswith("The upstream's certificate is not trusted: ")
    await deployment.worker.says(f"no list of models from upstream {name} .* certificate is not trusted")


async def test_a_server_without_tls_is_reported(deployment: Deployment, broker: Broker) -> None:
    error = (await run(broker, "no-tls-1")).error or {}
    assert error["code"] == "upstream_unreachable"
    assert error["message"] == "The upstream does not speak TLS (https://)."


async def test_an_upstream_without_a_key_does_not_stop_the_others(deployment: Deployment, broker: Broker) -> None:
    await deployment.worker.says("upstream without-its-key cannot be used: B_KEY is not set")
    error = (await run(broker, "without-its-key-1")).error or {}
    assert (error["code"], error["message"]) == ("upstream_auth", "B_KEY is not set on the worker.")
    assert deployment.plain.requests("without-its-key") == []


async def test_headers_of_an_entry_are_sent_with_each_call_and_not_logged(
    deployment: Deployment, broker: Broker
) -> None:
    assert (await run(broker, "headers-1")).text == "Good morning"
    await deployment.worker.says("no list of models from upstream headers .*: it denies access, status 403$")
    requests = deployment.plain.requests("headers")
    assert len(requests) == 2
    for head in requests:
        assert value_of(head, "authorization") == "Basic canary-login"
        assert value_of(head, "x-team") == "canary-team"
        assert value_of(head, "user-agent") == "tokencast"
    assert "canary" not in deployment.worker.output


async def test_an_unavailable_list_of_models_is_only_a_warning(deployment: Deployment, broker: Broker) -> None:
    for name, (why, _) in LISTS.items():
        await deployment.worker.says(
            f"WARNING.* no list of models from upstream {name} at {deployment.plain.url}/.*: {why}$"
        )
        [request] = deployment.plain.requests(name, "/models") or [""]
        assert value_of(request, "accept") == "application/json"
    assert (await run(broker, "list-half-1")).text == "Good morning"
    [request] = deployment.plain.requests("list-half", "/chat/completions")
    assert value_of(request, "accept") == "text/event-stream"
    assert "canary" not in deployment.worker.output


async def test_an_upstream_without_a_configured_key_gets_none(deployment: Deployment, broker: Broker) -> None:
    assert (await run(broker, "keyless-1")).text == "Good morning"
    await wait_until(lambda: deployment.plain.requests("keyless", "/models"))
    requests = deployment.plain.requests("keyless")
    assert [value_of(head, "authorization") for head in requests] == [None, None]


async def test_a_self_hosted_server_needs_no_key(broker: Broker, own_redis: EmbeddedRedis) -> None:
    async with (
        serving() as server,
        connect(own_redis.url) as own,
        service("worker", REDIS_URL=own_redis.url, OPENAI_BASE_URL=f"{server.url}/own/v1") as process,
    ):
        await process.says("upstream default at .* is called without a key$")
        assert (await run(own, "any")).text == "Good morning"
        assert {value_of(head, "authorization") for head in server.heads} == {None}


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_authorities_are_read_from_a_file_or_a_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The SSL context for upstreams and for the command line's requests."""
    authority = make_authority(tmp_path)
    make_certificate(tmp_path, authority)
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    async with serving(server_context(tmp_path)) as server:
        port = server.url.rpartition(":")[2]
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl_context())
        monkeypatch.setenv(name, str(authority if name == "SSL_CERT_FILE" else authority.parent))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ssl_context())
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE: No such file or directory: /nowhere.pem"),
        ("SSL_CERT_FILE", "/dev/null", "SSL_CERT_FILE: no certificates in PEM format: /dev/null"),
        ("SSL_CERT_DIR", "/nowhere", "SSL_CERT_DIR: no such directory: /nowhere"),
    ],
)
def test_unreadable_certificates_end_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, path: str, expected: str
) -> None:
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, path)
    with pytest.raises(Misconfigured) as caught:
        check_client([default_upstream("https://127.0.0.1:9/v1", "k", ("*",), Limits())])
    assert caught.value.message == expected
    check_client([default_upstream("http://127.0.0.1:9/v1", "k", ("*",), Limits())])

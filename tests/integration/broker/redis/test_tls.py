"""TLS to Redis: an option has the same effect on both kinds of connection and on sentinels, or is refused by name."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from broker.errors import StorageUnavailable
from broker.redis.client import Redis, connect_redis
from tests.servers.redis_certificates import Certificates
from tests.servers.redis_servers import SERVICE, Server, directory_of_servers
from tests.support import ENGINES, gateway, request_body, service, worker

pytestmark = pytest.mark.engine  # the engine built with TLS


class Secured:
    """Servers with a certificate for another name, for the address, and for the address with client certificates."""

    def __init__(self, certificates: Certificates, misnamed: int, named: int, strict: int, plain: int) -> None:
        self._certificates = certificates
        self.misnamed, self.named, self.strict, self.plain = misnamed, named, strict, plain

    def url(self, port: int, query: str) -> str:
        """A URL in whose query `{ca}` and `{data}` stand for the authority and `{dir}` for the directory of
        certificates."""
        ca = self._certificates.ca
        filled = query.format(ca=f"ssl_ca_certs={ca}", data=f"ssl_ca_data={quote(ca.read_text())}", dir=ca.parent)
        return f"rediss://127.0.0.1:{port}/0?{filled}"


@pytest.fixture(scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Secured, None]:
    binary = ENGINES["redis"]
    if binary is None:
        pytest.skip("redis-server is not installed")
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    misnamed, named = certificates.issue("internal", "DNS:redis.internal"), certificates.issue("good", "IP:127.0.0.1")
    ports = [free_port() for _ in range(3)]

    def server(port: int, options: dict[str, str]) -> EmbeddedRedis:
        return EmbeddedRedis(binary=binary, options={"tls-port": str(port), **options})

    async with (
        server(ports[0], misnamed) as plain,
        server(ports[1], named),
        server(ports[2], {**named, "tls-auth-clients": "yes"}),
    ):
        yield Secured(certificates, *ports, plain.port)


async def outcomes(url: str) -> tuple[str | None, str | None]:
    """The errors of the connection pool and of a raw connection, or None."""
    async with connect_redis(url) as redis:
        return await redis.unavailable_reason(), await raw_connection_error(redis)


async def raw_connection_error(redis: Redis) -> str | None:
    try:
        connection = await redis.topology.open()
    except OSError as error:
        return str(error)
    try:
        assert await connection.call("PING", timeout=5) == b"PONG"
    finally:
        connection.close()
    return None


UNTRUSTED, MISNAMED = "not signed by a trusted authority", "not valid for 127.0.0.1"


@pytest.mark.parametrize(
    ("port", "query", "expected"),
    [
        ("named", "{ca}", None),
        ("named", "{data}", None),
        ("named", "{ca}&ssl_min_version=TLSv1.3&ssl_ciphers=HIGH&ssl_check_hostname=true", None),
        ("named", "client_name=x", UNTRUSTED),
        ("misnamed", "{ca}", MISNAMED),
        ("misnamed", "{data}", MISNAMED),
        ("misnamed", "{ca}&ssl_cert_reqs=optional", MISNAMED),
        ("misnamed", "{ca}&ssl_cert_reqs=CERT_REQUIRED", MISNAMED),
        ("misnamed", "{ca}&ssl_check_hostname=false", None),
        ("misnamed", "ssl_check_hostname=false", UNTRUSTED),
        ("misnamed", "ssl_cert_reqs=none", None),
        ("misnamed", "ssl_cert_reqs=CERT_NONE", None),
        ("strict", "{ca}", "client certificate"),
        ("strict", "{ca}&ssl_certfile={dir}/good.pem&ssl_keyfile={dir}/good.key", None),
        ("plain", "{ca}", "does not (support TLS|answer the TLS handshake)"),
    ],
)
async def test_an_option_affects_both_kinds_of_connection(
    secured: Secured, port: str, query: str, expected: str | None
) -> None:
    for error in await outcomes(secured.url(getattr(secured, port), query)):
        check(error, expected)


def check(error: str | None, expected: str | None) -> None:
    if expected is None:
        assert error is None
    else:
        assert re.search(expected, error or "")


async def test_a_plain_url_for_a_tls_server_is_reported(secured: Secured) -> None:
    for error in await outcomes(f"redis://127.0.0.1:{secured.misnamed}/0"):
        assert "rediss://" in (error or "")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ssl_ca_certs=/nope.pem", "ssl_ca_certs: No such file or directory: /nope.pem"),
        ("ssl_ca_certs={dir}", "ssl_ca_certs: Is a directory"),
        ("ssl_ca_certs={dir}/good.key", "ssl_ca_certs: no certificate"),
        ("ssl_ca_path=/nope", "ssl_ca_path: no such directory"),
        ("ssl_ca_data=nonsense", "ssl_ca_data: no certificate"),
        ("{ca}&ssl_certfile=/nope.pem", "ssl_certfile: No such file"),
        ("{ca}&ssl_keyfile={dir}/good.key", "ssl_keyfile needs ssl_certfile"),
        ("{ca}&ssl_certfile={dir}/good.pem&ssl_keyfile={dir}/internal.key", "ssl_certfile, ssl_keyfile"),
        ("ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of"),
        ("ssl_check_hostname=perhaps", "ssl_check_hostname must be true or false"),
        ("ssl_check_hostname=true&ssl_cert_reqs=none", "ssl_check_hostname=true needs"),
        ("ssl_min_version=SSLv3", "ssl_min_version must be"),
        ("ssl_ciphers=nonsense", "ssl_ciphers: "),
    ],
)
async def test_an_invalid_option_is_refused_by_name(secured: Secured, query: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}"):
        async with connect_redis(secured.url(secured.named, query)):
            pass


@pytest.mark.parametrize("kind", ["api", "worker"])
async def test_an_unreadable_file_ends_the_start_in_one_line(secured: Secured, kind: str) -> None:
    url = secured.url(secured.named, "ssl_ca_certs=/nope.pem")
    async with service(kind, REDIS_URL=url, PORT="0", OPENAI_API_KEY="k") as process:
        assert await process.wait() == 2
    (line,) = process.lines
    assert "REDIS_URL: ssl_ca_certs: No such file or directory: /nope.pem" in line


async def test_a_certificate_for_another_name_is_reported_and_no_process_is_ready(secured: Secured) -> None:
    """The processes keep running, since the certificate can be replaced."""
    url = secured.url(secured.misnamed, "{ca}")
    async with gateway(url) as api, service("worker", REDIS_URL=url, OPENAI_API_KEY="k") as process:
        for each in (api.process, process):
            await each.says(r"certificate is not valid for 127\.0\.0\.1 \(CERTIFICATE_VERIFY_FAILED\)")
        ready = await api.http.get("/readyz")
        assert (ready.status_code, MISNAMED in ready.text) == (503, True)
        refused = await api.http.post("/v1/generations", json=request_body())
        assert refused.json()["error"]["code"] == "storage_unavailable"
        assert "Traceback" not in api.process.output + process.output


@pytest.mark.parametrize(("port", "query"), [("named", "{ca}"), ("misnamed", "{ca}&ssl_check_hostname=false")])
async def test_a_generation_completes_over_tls(secured: Secured, sim: str, port: str, query: str) -> None:
    url = secured.url(getattr(secured, port), query)
    async with gateway(url) as api, worker(url, sim):
        assert (await api.http.get("/readyz")).status_code == 200
        made = await api.create(request_body("[[sim length=3 speed=0]]", model="sim"))
        assert (await api.events(made["id"]))[-1].event == "completed"


async def test_the_python_api_reports_the_same_tls_error(secured: Secured) -> None:
    async with connect(secured.url(secured.misnamed, "{ca}")) as broker:
        with pytest.raises(StorageUnavailable, match=MISNAMED):
            await broker.enqueue(request_body())


@asynccontextmanager
async def sentinel_over_tls(binary: str, certificates: dict[str, str], master: int) -> AsyncGenerator[int, None]:
    """A sentinel that monitors this master. Yields its port."""
    port = free_port()
    async with directory_of_servers() as (directory, servers):
        options = (
            f"tls-port {port}",
            *(f"{name} {value}" for name, value in certificates.items()),
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 1",
            "user sentinel on >s3ntinel +@all ~* &*",
        )
        sentinel = Server(binary, directory, *options, sentinel=True)
        servers.append(sentinel)
        await sentinel.start()
        yield port


async def test_certificates_of_sentinels_are_verified(secured: Secured, tmp_path: Path) -> None:
    """By host name and with separate credentials. The certificate of the master is verified too."""
    binary = ENGINES["redis"]
    assert binary is not None
    certificates = Certificates(tmp_path)
    for name, port, error in (("127.0.0.1", secured.named, None), ("127.0.0.2", secured.named, "not valid for")):
        async with sentinel_over_tls(binary, certificates.issue("sentinel", f"IP:{name}"), port) as sentinel:
            trusted = tmp_path / "both.pem"
            trusted.write_text(certificates.ca.read_text() + secured._certificates.ca.read_text())
            login = "sentinel_username=sentinel&sentinel_password=s3ntinel"
            url = f"rediss+sentinel://127.0.0.1:{sentinel}/{SERVICE}?ssl_ca_certs={trusted}&{login}"
            for found in await outcomes(url):
                check(found, error)
            for found in await outcomes(url.replace("s3ntinel", "wrong")):
                assert found is not None

"""A reverse proxy in front of gateways: nginx and Caddy, with their defaults and with the configuration that `docs/`
recommends."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from broker.dev.embedded_redis import free_port
from tests.support import DEADLINE, ROOT, Gateway, wait_until

AROUND_NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    gzip on;
    gzip_proxied any;
    gzip_types application/json text/plain text/css application/javascript;
    {inner}
}}
"""

NGINX_DEFAULT = """
server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://{gateway}; }}
}}
"""

CADDY_DEFAULT = """
{{
    admin off
}}
http://127.0.0.1:{port} {{
    reverse_proxy {gateway}
}}
"""

# The additions that the tests need: no files outside of the test's directory, and no listener except the test's.
AROUND_CADDY = """\tadmin off
\tauto_https disable_redirects
\tskip_install_trust
\tdefault_bind 127.0.0.1
"""


@dataclass(frozen=True)
class ProxySetup:
    """A proxy's directory and port, and the addresses of the gateways."""

    directory: Path
    port: int
    gateways: tuple[str, ...]
    changes: Mapping[str, str]

    def adapted(self, name: str, *changes: tuple[str, str]) -> str:
        """The file of `docs/`, changed only in the addresses and file names of this machine."""
        text = (ROOT / "docs" / name).read_text("utf-8")
        for there, here in (*changes, *self.changes.items()):
            assert text.count(there) == 1, there
            text = text.replace(there, here)
        return text


def nginx_config(setup: ProxySetup, *, default_config: bool) -> str:
    if default_config:
        inner = NGINX_DEFAULT.format(port=setup.port, gateway=setup.gateways[0])
    else:
        inner = setup.adapted(
            "nginx.conf",
            (
                "    server 127.0.0.1:8000 fail_timeout=1s;",
                "\n".join(f"    server {gateway} fail_timeout=1s;" for gateway in setup.gateways),
            ),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{setup.port} ssl http2;"),
            ("/etc/ssl/certs/tokencast.pem", f"{setup.directory}/cert.pem"),
            ("/etc/ssl/private/tokencast.key", f"{setup.directory}/key.pem"),
            ("/var/log/nginx/tokencast.log", f"{setup.directory}/access.log"),
            ("/var/log/nginx/error.log", f"{setup.directory}/errors.log"),
        )
    return AROUND_NGINX.format(directory=setup.directory, inner=inner)


def caddy_config(setup: ProxySetup, *, default_config: bool) -> str:
    if default_config:
        return CADDY_DEFAULT.format(port=setup.port, gateway=setup.gateways[0])
    return setup.adapted(
        "Caddyfile",
        ("\n{\n", f"\n{{\n{AROUND_CADDY}"),
        ("# tls /etc/ssl/certs/tokencast.pem", f"tls {setup.directory}/cert.pem"),
        ("/etc/ssl/private/tokencast.key", f"{setup.directory}/key.pem"),
    )


@dataclass(frozen=True)
class Kind:
    """A proxy program. It writes to stderr everything except the access log."""

    name: str
    config: Callable[..., str]
    arguments: str  # {config} and {directory} are replaced

    @property
    def binary(self) -> str:
        """The path of the program; skips the test if it is not installed."""
        found = shutil.which(self.name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if found is None or shutil.which("openssl") is None:
            pytest.skip(f"{self.name} or openssl is not installed")
        return found


NGINX = Kind("nginx", nginx_config, "-p {directory} -c {config} -e stderr")
CADDY = Kind("caddy", caddy_config, "run --adapter caddyfile --config {config}")
PROXIES = {kind.name: kind for kind in (NGINX, CADDY)}


def self_signed(directory: Path) -> None:
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem"
    command = f"openssl req -x509 {key} -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -out cert.pem"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)


@asynccontextmanager
async def proxy(
    kind: Kind,
    api: Gateway,
    directory: Path,
    *others: str,
    default_config: bool = False,
    changes: Mapping[str, str] | None = None,
) -> AsyncGenerator[Gateway, None]:
    """The gateway through a proxy, alone or with `others` (URLs): the same process, with the proxy's address and
    client. `changes` are applied to the recommended file. The proxy logs into `directory`: access.log and
    errors.log."""
    gateways = tuple(urlsplit(url).netloc for url in (api.url, *others))
    setup = ProxySetup(directory, free_port(), gateways, changes or {})
    if not default_config:
        self_signed(directory)
    config = directory / "config"
    config.write_text(kind.config(setup, default_config=default_config))
    url = f"{'http' if default_config else 'https'}://127.0.0.1:{setup.port}"
    arguments = kind.arguments.format(config=config, directory=directory).split()
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
        "SITE": url,  # these three: variables of docs/Caddyfile
        "GATEWAYS": " ".join(gateways),
        "ACCESS_LOG": f"file {directory}/access.log",
    }
    with (directory / "errors.log").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            kind.binary, *arguments, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE, verify=False) as client:

            async def is_ready() -> bool:
                assert process.returncode is None, (directory / "errors.log").read_text()
                with suppress(httpx2.ConnectError):
                    return (await client.get("/healthz")).status_code == 200
                return False

            await wait_until(is_ready)
            yield replace(api, url=url, http=client)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()

"""A reverse proxy in front of gateways: nginx and Caddy, as they come, and as `docs/` recommends them."""

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

NGINX_AS_IT_COMES = """
server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://{gateway}; }}
}}
"""

CADDY_AS_IT_COMES = """
{{
    admin off
}}
http://127.0.0.1:{port} {{
    reverse_proxy {gateway}
}}
"""

# What a machine of the tests needs of Caddy beside the recommended: nothing of it outside the test's directory, and no
# listener beside the test's.
AROUND_CADDY = """\tadmin off
\tauto_https disable_redirects
\tskip_install_trust
\tdefault_bind 127.0.0.1
"""


@dataclass(frozen=True)
class Place:
    """Where a proxy is to run, and what it is to stand before: the gateways' addresses."""

    directory: Path
    port: int
    gateways: tuple[str, ...]
    changes: Mapping[str, str]

    def adapted(self, name: str, *changes: tuple[str, str]) -> str:
        """The file of `docs/` with this machine's addresses and files, and nothing else changed."""
        text = (ROOT / "docs" / name).read_text("utf-8")
        for there, here in (*changes, *self.changes.items()):
            assert text.count(there) == 1, there
            text = text.replace(there, here)
        return text


def nginx_config(place: Place, *, as_it_comes: bool) -> str:
    if as_it_comes:
        inner = NGINX_AS_IT_COMES.format(port=place.port, gateway=place.gateways[0])
    else:
        inner = place.adapted(
            "nginx.conf",
            ("    server 127.0.0.1:8000;", "\n".join(f"    server {gateway};" for gateway in place.gateways)),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{place.port} ssl http2;"),
            ("/etc/ssl/certs/tokencast.pem", f"{place.directory}/cert.pem"),
            ("/etc/ssl/private/tokencast.key", f"{place.directory}/key.pem"),
            ("/var/log/nginx/tokencast.log", f"{place.directory}/access.log"),
            ("/var/log/nginx/error.log", f"{place.directory}/errors.log"),
        )
    return AROUND_NGINX.format(directory=place.directory, inner=inner)


def caddy_config(place: Place, *, as_it_comes: bool) -> str:
    if as_it_comes:
        return CADDY_AS_IT_COMES.format(port=place.port, gateway=place.gateways[0])
    return place.adapted(
        "Caddyfile",
        ("\n{\n", f"\n{{\n{AROUND_CADDY}"),
        ("\ntokencast.example {", f"\nhttps://127.0.0.1:{place.port} {{"),
        ("# tls /etc/ssl/certs/tokencast.pem", f"tls {place.directory}/cert.pem"),
        ("/etc/ssl/private/tokencast.key", f"{place.directory}/key.pem"),
        ("reverse_proxy 127.0.0.1:8000 {", f"reverse_proxy {' '.join(place.gateways)} {{"),
        ("/var/log/caddy/tokencast.log", f"{place.directory}/access.log"),
    )


@dataclass(frozen=True)
class Kind:
    """A proxy program. It says on stderr what it has to say beside the access log."""

    name: str
    config: Callable[..., str]
    arguments: str  # {config}, {directory}

    @property
    def binary(self) -> str:
        """Skips where there is none."""
        found = shutil.which(self.name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if found is None or shutil.which("openssl") is None:
            pytest.skip(f"no {self.name} on this machine")
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
    as_it_comes: bool = False,
    changes: Mapping[str, str] | None = None,
) -> AsyncGenerator[Gateway, None]:
    """The gateway behind a proxy, alone or beside `others` (URLs): its process as before, its address and client the
    proxy's. `changes` to the recommended file; what the proxy logs is in `directory`: access.log and errors.log."""
    gateways = tuple(urlsplit(url).netloc for url in (api.url, *others))
    place = Place(directory, free_port(), gateways, changes or {})
    if not as_it_comes:
        self_signed(directory)
    config = directory / "config"
    config.write_text(kind.config(place, as_it_comes=as_it_comes))
    url = f"{'http' if as_it_comes else 'https'}://127.0.0.1:{place.port}"
    arguments = kind.arguments.format(config=config, directory=directory).split()
    environment = {**os.environ, "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    with (directory / "errors.log").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            kind.binary, *arguments, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE, verify=False) as client:

            async def answers() -> bool:
                assert process.returncode is None, (directory / "errors.log").read_text()
                with suppress(httpx2.ConnectError):
                    return (await client.get("/healthz")).status_code == 200
                return False

            await wait_until(answers)
            yield replace(api, url=url, http=client)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()

"""nginx in front of a gateway: as it comes, and as `docs/nginx.conf` recommends it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from broker.embedded import free_port
from tests.support import DEADLINE, ROOT, Gateway, wait_until

AROUND = """
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

AS_IT_COMES = """
server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {gateway}; }}
}}
"""


def recommended(directory: Path, port: int, gateway: str) -> str:
    """`docs/nginx.conf` with this machine's addresses and files, and nothing else changed."""
    text = (ROOT / "docs/nginx.conf").read_text("utf-8")
    for there, here in (
        ("server 127.0.0.1:8000;", f"server {urlsplit(gateway).netloc};"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("/etc/ssl/certs/tokencast.pem", f"{directory}/cert.pem"),
        ("/etc/ssl/private/tokencast.key", f"{directory}/key.pem"),
        ("/var/log/nginx/tokencast.log", f"{directory}/access.log"),
    ):
        assert text.count(there) == 1, there
        text = text.replace(there, here)
    return text


def self_signed(directory: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)


@asynccontextmanager
async def nginx(api: Gateway, directory: Path, *, as_it_comes: bool = False) -> AsyncGenerator[Gateway, None]:
    """The gateway behind nginx: its process as before, its address and client nginx's. Skips where there is none."""
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if binary is None or shutil.which("openssl") is None:
        pytest.skip("no nginx on this machine")
    port = free_port()
    if as_it_comes:
        url, inner = f"http://127.0.0.1:{port}", AS_IT_COMES.format(port=port, gateway=api.url)
    else:
        self_signed(directory)
        url, inner = f"https://127.0.0.1:{port}", recommended(directory, port, api.url)
    (directory / "nginx.conf").write_text(AROUND.format(directory=directory, inner=inner))
    command = [binary, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE, verify=False) as client:

            async def answers() -> bool:
                assert process.returncode is None, "nginx did not start"
                with suppress(httpx2.ConnectError):
                    return (await client.get("/healthz")).status_code == 200
                return False

            await wait_until(answers)
            yield replace(api, url=url, http=client)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()

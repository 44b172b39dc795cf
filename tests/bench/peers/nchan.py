"""nginx with nchan, a fan-out server in C that keeps messages in memory and publishes and serves them over HTTP.

`/pub/<name>` accepts a message with POST, `/sub/<name>` is its EventSource stream from the oldest message. The Debian
package is libnginx-mod-nchan.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.dev.embedded_redis import free_port
from broker.runtime.child_process import die_with_parent
from tests.support import wait_until

CONFIGURATION = """
load_module {module};
daemon off;
pid {directory}/pid;
error_log stderr warn;
worker_processes {workers};
worker_rlimit_nofile {files};
events {{
    worker_connections {connections};
}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    nchan_shared_memory_size 1024M;
    nchan_message_timeout 1h;
    nchan_message_buffer_length {messages};
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/pub/(.+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
        }}
        location ~ ^/sub/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_subscriber_first_message oldest;
            nchan_channel_id $1;
        }}
    }}
}}
"""


class NoNchan(Exception):
    """nginx or its module is not installed; see the message."""


@dataclass(frozen=True)
class Nchan:
    port: int
    pid: int  # of the master; its workers are its children


def installed() -> tuple[str, Path]:
    """The paths of nginx and its module. Raises NoNchan if one is missing."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise NoNchan("nchan is not measured: there is no nginx (on Debian and Ubuntu: libnginx-mod-nchan).")
    about = subprocess.run([program, "-V"], capture_output=True, text=True).stderr
    directory = re.search(r"--modules-path=(\S+)", about)
    found = Path(directory[1] if directory else "/usr/lib/nginx/modules") / "ngx_nchan_module.so"
    if not found.exists():
        raise NoNchan("nchan is not measured: nginx has no nchan module (on Debian and Ubuntu: libnginx-mod-nchan).")
    return program, found


def configure(directory: Path, module: Path, port: int, workers: int, messages: int) -> Path:
    directory.chmod(0o755)  # its workers may run as another user
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 1 << 20 if files == resource.RLIM_INFINITY else min(files, 1 << 20)
    values = {"directory": directory, "module": module, "port": port, "workers": workers, "messages": messages}
    configuration = directory / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(**values, files=files, connections=min(files, 20_000)))
    return configuration


@asynccontextmanager
async def nchan(*, workers: int = 1, messages: int = 5000) -> AsyncGenerator[Nchan, None]:
    """Run nchan with a buffer of `messages` messages per channel. Raises NoNchan if that is not possible."""
    program, module = installed()
    with tempfile.TemporaryDirectory(prefix="tokencast-nchan-") as directory:
        port = free_port()
        configuration = configure(Path(directory), module, port, workers, messages)
        errors = Path(directory) / "errors"
        with errors.open("wb") as output:
            command = die_with_parent([program, "-c", str(configuration), "-e", "stderr"])
            process = await asyncio.create_subprocess_exec(
                *command, stdout=output, stderr=output, start_new_session=True
            )

            async def answers() -> bool:
                if process.returncode is not None:
                    raise NoNchan(f"nchan is not measured, nginx exits immediately: {errors.read_text().strip()}")
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    return False
                writer.close()
                return True

            try:
                await wait_until(answers)
                yield Nchan(port, process.pid)
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()

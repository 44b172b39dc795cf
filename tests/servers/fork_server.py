"""`python -m tests.servers.fork_server FD MODULE …`: starts our processes by fork, with their modules imported.

Imports are most of the cost of a start: half a second of processor time for a gateway, one second for a worker, and the
tests start hundreds of both. Each message on the socket FD starts a process. It contains, as JSON, the arguments of
`python -m`, the environment and the directory, and four descriptors for stdin, stdout, stderr and the status. The
status gets two lines: the child's process id and, after its end, its exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import socket
import sys
from typing import Any, TextIO


def preload(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
        if name.endswith(".__main__"):
            del sys.modules[name]  # it runs as `__main__` in each child
    gc.collect()
    gc.freeze()  # the collector would write to shared pages and so copy them


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Serve requests. Returns None at the end of the socket, and in a child the process that it has to become."""
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                selector.unregister(key.fd)
                ended(key.fd, *key.data)
                continue
            message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 4)
            if not message:
                return None
            *standard, status = descriptors
            child = os.fork()
            if child == 0:
                selector.close()
                channel.close()
                redirect(standard)
                return json.loads(message)
            for descriptor in standard:
                os.close(descriptor)
            tell(status, child)
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, status))


def ended(descriptor: int, child: int, status: int) -> None:
    _, code = os.waitpid(child, 0)
    tell(status, os.waitstatus_to_exitcode(code))
    os.close(status)
    os.close(descriptor)


def tell(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test has ended
        os.write(status, b"%d\n" % number)


def redirect(standard: list[int]) -> None:
    os.setsid()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # Python's own streams were created for the previous descriptors.
    sys.stdin = sys.__stdin__ = stream(0, "rb", -1, sys.stdin)
    sys.stdout = sys.__stdout__ = stream(1, "wb", 0, sys.stdout)
    sys.stderr = sys.__stderr__ = stream(2, "wb", 0, sys.stderr)


def stream(descriptor: int, mode: str, buffering: int, like: TextIO) -> io.TextIOWrapper:
    binary = open(descriptor, mode, buffering, closefd=False)  # noqa: SIM115 - the process ends with it
    return io.TextIOWrapper(binary, like.encoding, like.errors, write_through=buffering == 0)


def become(arguments: list[str], environment: dict[str, str], directory: str) -> None:
    """Run a module as `python -m` does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    preload(sys.argv[2:])
    task = serve(socket.socket(fileno=int(sys.argv[1])))
    if task is not None:
        become(**task)

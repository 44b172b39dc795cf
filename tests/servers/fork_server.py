"""`python -m tests.servers.fork_server FD MODULE …`: starts processes of ours by fork, their modules already imported.

Importing is most of what a start costs: half a second of processor time for a gateway, a whole one for a worker, and
the tests start hundreds of both. Each message on the socket FD is a start: as JSON the arguments of `python -m`, the
environment and the directory, and with it three descriptors, for stdout, stderr and the status. The child's process id
and, once it has ended, its exit code go there, a line each.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
from typing import Any


def preload(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
        if name.endswith(".__main__"):
            del sys.modules[name]  # it runs under its other name in each child
    gc.collect()
    gc.freeze()  # a collector that wrote to what is shared would copy it


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """None at the end of the socket; in a child what it has to become."""
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                selector.unregister(key.fd)
                ended(key.fd, *key.data)
                continue
            message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 3)
            if not message:
                return None
            out, err, status = descriptors
            child = os.fork()
            if child == 0:
                selector.close()
                channel.close()
                redirect(out, err)
                return json.loads(message)
            os.close(out)
            os.close(err)
            tell(status, child)
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, status))


def ended(descriptor: int, child: int, status: int) -> None:
    _, code = os.waitpid(child, 0)
    tell(status, os.waitstatus_to_exitcode(code))
    os.close(status)
    os.close(descriptor)


def tell(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test is over
        os.write(status, b"%d\n" % number)


def redirect(out: int, err: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def become(arguments: list[str], environment: dict[str, str], directory: str) -> None:
    """What `python -m` does."""
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

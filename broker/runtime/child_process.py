"""Child processes that end with their parent."""

from __future__ import annotations

import os
import sys

_LAUNCH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):  # else the parent has ended already, and no signal will come
    os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(command: list[str]) -> list[str]:
    """Wrap a command so that the kernel kills it when the process that starts it ends, even by SIGKILL. Linux only;
    elsewhere the command is returned unchanged.

    Start it from the main thread: the kernel watches the thread that started it. The wrapper is a program of three
    lines that costs 20 ms: a `preexec_fn` could deadlock in a process with threads, and warns of that since Python
    3.12.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]

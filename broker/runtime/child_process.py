"""Child processes that end with their parent."""

from __future__ import annotations

import os
import sys

_LAUNCH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):  # otherwise the parent has already ended, and no signal will arrive
    os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(command: list[str]) -> list[str]:
    """Wrap a command so that the kernel kills it when the process that starts it ends, even by SIGKILL. Linux only;
    elsewhere the command is returned unchanged.

    Start the command from the main thread: the kernel tracks the thread that starts it. The wrapper is a program of
    three lines that costs 20 ms: a `preexec_fn` can deadlock in a process with threads, of which Python warns since
    3.12.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]

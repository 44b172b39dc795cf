"""`python -m tests.acceptance.edge.few_files 256 api`: run a module of this project with a limit on open files."""

from __future__ import annotations

import os
import resource
import sys

if __name__ == "__main__":
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])

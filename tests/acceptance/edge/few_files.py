"""`python -m tests.acceptance.few_files 256 api`: a module of ours where a process may open so many files."""

from __future__ import annotations

import os
import resource
import sys

if __name__ == "__main__":
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])

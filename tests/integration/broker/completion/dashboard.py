"""The dashboard's own code, run by Node.js instead of a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT


def sections(chunks: dict[str, list[Any]], folder: Path) -> dict[str, list[list[str]]]:
    """Return the sections that the dashboard shows for each list of chunks: `[heading, text]`, the last is `["finish",
    …]`. Copies the page's modules into the folder, where Node.js recognizes them as ES modules."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    shutil.copytree(ROOT / "api/static/data", folder / "data")
    (folder / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        [node, str(ROOT / "tests/node/sections.mjs"), str(folder)],
        input=json.dumps(chunks).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)

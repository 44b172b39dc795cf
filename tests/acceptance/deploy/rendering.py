"""Objects of Kubernetes as helm and kubectl render them. Neither needs a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

CHART = ROOT / "charts/tokencast"
_PATH = f"{ROOT / '.cache/helm/bin'}:{os.environ.get('PATH', '')}"

Object = dict[str, Any]


def program(name: str) -> str:
    """The path of a program; skips the test if it is not installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def objects(done: subprocess.CompletedProcess[str]) -> list[Object]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def chart(*arguments: str | Path, release: str = "tokencast") -> list[Object]:
    return objects(run(program("helm"), "template", release, CHART, "--namespace", "tokencast", *arguments))


def kustomized(directory: Path) -> list[Object]:
    return objects(run(program("kubectl"), "kustomize", directory))


def one(rendered: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in rendered if each["kind"] == kind and each["metadata"]["name"] == name]
    return found

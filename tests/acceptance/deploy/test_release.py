"""`make release ARGS=--dry-run`, without the image, which tests/acceptance/ops/test_compose.py builds."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from broker.version import __version__
from tests.support import ROOT

pytestmark = pytest.mark.release


def release(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    python = ROOT / ".cache/release/bin/python"
    if not python.exists():
        pytest.skip("the release tools are not installed")
    command = (python, cwd / ".ci/release.py", "--without", "image", "--without", "npm", *arguments)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


def test_a_dry_run_builds_everything(tmp_path: Path) -> None:
    before = subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True).stdout
    done = release("--dry-run", "--directory", tmp_path / "dist")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not tagged" in done.stdout
    assert subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True).stdout == before
    files = {path.name: path for path in (tmp_path / "dist").iterdir()}
    name = f"tokencast_broker-{__version__}"
    assert {f"{name}-py3-none-any.whl", f"{name}.tar.gz", f"{name}.cdx.json", "SHA256SUMS"} <= set(files)
    sums = dict(reversed(line.split()) for line in files["SHA256SUMS"].read_text().splitlines())
    assert sums == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "SHA256SUMS"
    }
    with ZipFile(files[f"{name}-py3-none-any.whl"]) as wheel:
        assert "api/app.py" in wheel.namelist()
    with tarfile.open(files[f"{name}.tar.gz"]) as source:
        assert {f"{name}/Makefile", f"{name}/docs/backup.md"} <= set(source.getnames())
    sbom = json.loads(files[f"{name}.cdx.json"].read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    assert sbom["metadata"]["component"]["version"] == __version__
    redis = next(part for part in sbom["components"] if part["name"] == "redis")
    assert redis["purl"].startswith(f"pkg:pypi/redis@{redis['version']}")
    assert redis["externalReferences"][0]["hashes"]


def test_versions_that_differ_end_it(tmp_path: Path) -> None:
    """In a copy of the files that it reads first."""
    for name in (".ci/release.py", "broker/version.py", "CHANGELOG.md", "charts/tokencast/Chart.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "broker/version.py").write_text('__version__ = "99.0.0"\n')
    done = release("--dry-run", cwd=tmp_path)
    assert done.returncode == 1
    assert f"Chart.yaml says {__version__}" in done.stderr
    assert "CHANGELOG.md is" in done.stderr
    assert not (tmp_path / "dist").exists()


def test_the_workflow_runs_the_same_command() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(re.match(r"make release\b", command) for command in commands)
    assert workflow[True]["push"] == {"tags": ["v*"]}  # YAML 1.1 reads `on` as a boolean

"""The distributions as users install them: built as wheels and installed into a separate environment."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import CLIENT, ROOT, clean_environment


@dataclass(frozen=True)
class Installed:
    """An environment with both wheels. It takes the dependencies from the environment that runs the tests."""

    home: Path
    wheel: Path
    client_wheel: Path

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.home / "bin" / "tokencast"

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.home)}))

    def environment(self, **variables: str) -> dict[str, str]:
        """The variables without the checkout, which other tests have on PYTHONPATH."""
        return {**clean_environment(), "PYTHONPATH": "", **variables}

    def run(self, *arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, cwd=cwd, env=self.environment(**variables), capture_output=True, text=True, timeout=100
        )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build and install the wheels without network access: the build backend is one of the test requirements."""
    work = tmp_path_factory.mktemp("packaging")
    for source in (ROOT, CLIENT):
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work / "dist", cwd=source)
    wheel, client_wheel = sorted((work / "dist").iterdir())
    found = Installed(work / "environment", wheel, client_wheel)
    _run(sys.executable, "-m", "venv", "--without-pip", found.home)
    options = ("--disable-pip-version-check", "--quiet", "--no-deps", "--no-index")
    _run(sys.executable, "-m", "pip", "--python", found.python, "install", *options, wheel, client_wheel)
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (found.packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n", "utf-8")
    return found


def _run(*command: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr

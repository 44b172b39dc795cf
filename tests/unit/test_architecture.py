"""The shape of the house, kept by a walk over the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "worker", "api")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SIMULATOR = "worker/upstream_sim/"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            yield node.module or ""


IMPORTS = {name_of(path): set(imports(path)) for path in SOURCES}


def importers(library: str) -> set[str]:
    return {
        name for name, modules in IMPORTS.items() if any(m == library or m.startswith(library + ".") for m in modules)
    }


@pytest.mark.parametrize(
    ("package", "allowed"), [("broker", "broker"), ("worker", "broker worker"), ("api", "broker api")]
)
def test_packages_look_one_way(package: str, allowed: str) -> None:
    """api → broker ← worker, nothing else."""
    for name, modules in IMPORTS.items():
        if name.startswith(package + "/"):
            assert {m.partition(".")[0] for m in modules} & set(PACKAGES) <= set(allowed.split()), name


def test_each_library_has_its_place() -> None:
    assert importers("openai") == {"worker/upstream.py", "worker/upstream_client.py"}
    assert importers("arq") == {"broker/queue.py", "worker/main.py"}
    assert importers("opentelemetry") == {"broker/trace.py"}
    assert importers("prometheus_client") == {"broker/metrics.py"}
    for library in ("starlette", "uvicorn"):
        assert {name for name in importers(library) if not name.startswith(("api/", SIMULATOR))} == set()


def test_the_simulator_stands_alone() -> None:
    for name, modules in IMPORTS.items():
        inside = name.startswith(SIMULATOR)
        ours = {m for m in modules if m.partition(".")[0] in PACKAGES}
        assert all(m.startswith("worker.upstream_sim") == inside for m in ours) or not inside, name
        assert inside or not any(m.startswith("worker.upstream_sim") for m in ours), name


def test_keys_are_spelled_in_one_file() -> None:
    literal = re.compile(r"""["']f?(tc:|arq:)""")
    spelled = {name_of(path) for path in SOURCES if literal.search(path.read_text("utf-8"))}
    spelled |= {name_of(path) for path in SOURCES if re.search(r'f"tc:', path.read_text("utf-8"))}
    assert spelled == {"broker/keys.py"}
    for script in (ROOT / "broker/scripts").glob("*.lua"):
        assert not literal.search(script.read_text("utf-8")), script.name


def test_the_environment_is_read_in_one_file() -> None:
    readers = {name_of(path) for path in SOURCES if re.search(r"os\.(environ|getenv)", path.read_text("utf-8"))}
    assert readers == {"broker/environment.py"}


def test_files_can_be_read_in_one_sitting() -> None:
    long = {name_of(path): n for path in SOURCES if (n := len(path.read_text("utf-8").splitlines())) > 400}
    assert long == {}


def test_functions_fit_on_a_screen() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 60, f"{name_of(path)}: {node.name} has {lines} lines"


def test_every_script_says_what_it_takes_and_gives() -> None:
    for script in (ROOT / "broker/scripts").glob("*.lua"):
        text = script.read_text("utf-8")
        if script.stem not in ("common", "expired", "items"):
            assert "KEYS" in text.split("\nlocal", 1)[0], script.name


def test_locks_have_hashes_and_no_addresses() -> None:
    for name in (*(path.name for path in ROOT.glob("requirements*.lock")), "tests/sdk/oldest.txt"):
        text = (ROOT / name).read_text("utf-8")
        assert "--hash=sha256:" in text
        assert not re.search(r"https?:|file:|--index-url|--find-links", text), name

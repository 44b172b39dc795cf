"""The shape of the house, kept by a walk over the imports."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("broker", "worker", "api")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SIMULATOR = "worker/simulator/"


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


# From the lowest floor to the highest. A room imports itself and the floors below its own; rooms of one floor do not
# import each other. A name is a room, or a module that stands on another floor than the rest of its folder.
FLOORS = (
    "broker.version broker.errors",
    "broker.ids broker.concurrency broker.json_depth broker.json_pieces",
    "broker.chunks",
    "broker.events broker.request broker.runtime",
    "broker.completion broker.redis",
    "broker.records",
    "broker.generation broker.settings",
    "broker.store",
    "broker.auth broker.queue broker.fanout",
    "broker.bulk",
    "broker.broker",
    "broker.gateway_client broker.dev broker",
    "broker.cli",
    "broker.__main__",
    "worker.simulator",
    "worker.upstream",
    "worker.claims",
    "worker",
    "worker.monitoring",
    "worker.worker",
    "worker.__main__",
    "api.accept api.errors api.query api.quotas",
    "api.auth api.server",
    "api.streaming",
    "api.middleware",
    "api.requests api.openapi_parts",
    "api.dialects.base",
    "api.dialects.native api.dialects.openai_chat",
    "api.ops",
    "api.app",
    "api.__main__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
MODULES = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}


def ours(path: Path) -> Iterator[str]:
    """The modules of the project that a file imports, also for annotations only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & set(MODULES) or {node.module}


def floor_of(module: str) -> str:
    """The entry of FLOORS that a module belongs to: its own, or the nearest room's around it."""
    name = module
    while name not in FLOOR:
        name = name.rpartition(".")[0]
    return name


def test_rooms_import_downwards() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in ours(path)
        if (here := floor_of(module)) != (there := floor_of(other)) and FLOOR[there] >= FLOOR[here]
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not under TYPE_CHECKING either."""
    graphlib.TopologicalSorter({module: set(ours(path)) - {module} for module, path in MODULES.items()}).prepare()


def test_rooms_are_small_and_say_what_they_do() -> None:
    for package in (path for path in SOURCES if path.name == "__init__.py"):
        assert len(list(package.parent.glob("*.py"))) <= 13, name_of(package)
        assert ast.get_docstring(ast.parse(package.read_text("utf-8"))), name_of(package)


@pytest.mark.parametrize(
    ("package", "allowed"), [("broker", "broker"), ("worker", "broker worker"), ("api", "broker api")]
)
def test_packages_look_one_way(package: str, allowed: str) -> None:
    """api → broker ← worker, nothing else."""
    for name, modules in IMPORTS.items():
        if name.startswith(package + "/"):
            assert {m.partition(".")[0] for m in modules} & set(PACKAGES) <= set(allowed.split()), name


def test_each_library_has_its_place() -> None:
    assert importers("openai") == {"worker/upstream/stream.py", "worker/upstream/client.py"}
    assert importers("arq") == {"broker/queue/tickets.py", "worker/consumer.py"}
    assert importers("opentelemetry") == {"broker/runtime/tracing.py"}
    assert importers("prometheus_client") == {"broker/runtime/prometheus.py"}
    for library in ("starlette", "uvicorn"):
        assert {name for name in importers(library) if not name.startswith(("api/", SIMULATOR))} == set()


def test_the_simulator_stands_alone() -> None:
    for name, modules in IMPORTS.items():
        inside = name.startswith(SIMULATOR)
        ours = {m for m in modules if m.partition(".")[0] in PACKAGES}
        assert all(m.startswith("worker.simulator") == inside for m in ours) or not inside, name
        assert inside or not any(m.startswith("worker.simulator") for m in ours), name


def test_keys_are_spelled_in_one_file() -> None:
    literal = re.compile(r"""["']f?(tc:|arq:)""")
    spelled = {name_of(path) for path in SOURCES if literal.search(path.read_text("utf-8"))}
    spelled |= {name_of(path) for path in SOURCES if re.search(r'f"tc:', path.read_text("utf-8"))}
    assert spelled == {"broker/store/keys.py"}
    for script in (ROOT / "broker").glob("*/lua/*.lua"):
        assert not literal.search(script.read_text("utf-8")), script.name


def test_the_environment_is_read_in_one_file() -> None:
    readers = {name_of(path) for path in SOURCES if re.search(r"os\.(environ|getenv)", path.read_text("utf-8"))}
    assert readers == {"broker/runtime/environment.py"}


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
    for script in (ROOT / "broker").glob("*/lua/*.lua"):
        text = script.read_text("utf-8")
        if script.stem not in ("common", "expired", "items"):
            assert "KEYS" in text.split("\nlocal", 1)[0], script.name


def test_locks_have_hashes_and_no_addresses() -> None:
    for name in (*(path.name for path in ROOT.glob("requirements*.lock")), "tests/sdk/oldest.txt"):
        text = (ROOT / name).read_text("utf-8")
        assert "--hash=sha256:" in text
        assert not re.search(r"https?:|file:|--index-url|--find-links", text), name

"""The architecture, checked on the imports: layers, sizes of packages, files and functions, and single definitions."""

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


# From the lowest layer to the highest. A package imports itself and lower layers; packages of one layer do not import
# each other. A name is a package, or a module in another layer than the rest of its package.
LAYERS = (
    "broker.version broker.errors",
    "broker.ids broker.concurrency broker.json_depth broker.json_pieces",
    "broker.chunks",
    "broker.events broker.request broker.runtime broker.webhooks.addresses",
    "broker.completion broker.redis",
    "broker.records",
    "broker.generation broker.settings",
    "broker.store",
    "broker.auth broker.queue broker.fanout broker.webhooks",
    "broker.waiting broker.bulk",
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
    " ".join(f"api.dialects.{path.name}" for path in sorted((ROOT / "api/dialects").glob("*/"))),
    "api.ops",
    "api.app",
    "api.__main__",
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
MODULES = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}


def ours(path: Path) -> Iterator[str]:
    """The modules of the project that a file imports, including imports for annotations only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & set(MODULES) or {node.module}


def layer_of(module: str) -> str:
    """The entry of LAYERS for a module: its own, or that of the nearest parent package."""
    name = module
    while name not in LAYER:
        name = name.rpartition(".")[0]
        assert name, f"{module} is in no layer: add its package to LAYERS"
    return name


def test_packages_import_only_lower_layers() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in ours(path)
        if (here := layer_of(module)) != (there := layer_of(other)) and LAYER[there] >= LAYER[here]
    ]
    assert wrong == []


def test_imports_have_no_cycles() -> None:
    """Including imports under TYPE_CHECKING."""
    graphlib.TopologicalSorter({module: set(ours(path)) - {module} for module, path in MODULES.items()}).prepare()


def test_packages_are_small_and_documented() -> None:
    for package in (path for path in SOURCES if path.name == "__init__.py"):
        assert len(list(package.parent.glob("*.py"))) <= 13, name_of(package)
        assert ast.get_docstring(ast.parse(package.read_text("utf-8"))), name_of(package)


@pytest.mark.parametrize(
    ("package", "allowed"), [("broker", "broker"), ("worker", "broker worker"), ("api", "broker api")]
)
def test_api_and_worker_import_only_broker(package: str, allowed: str) -> None:
    """api → broker ← worker."""
    for name, modules in IMPORTS.items():
        if name.startswith(package + "/"):
            assert {m.partition(".")[0] for m in modules} & set(PACKAGES) <= set(allowed.split()), name


def test_each_library_is_imported_only_in_its_modules() -> None:
    assert importers("openai") == {"worker/upstream/stream.py", "worker/upstream/client.py"}
    assert importers("arq") == {"worker/consumer.py"}
    assert importers("opentelemetry") == {"broker/runtime/tracing.py"}
    assert importers("standardwebhooks") == {"broker/webhooks/signing.py"}
    assert importers("prometheus_client") == {"broker/runtime/prometheus.py"}
    for library in ("starlette", "uvicorn"):
        assert {name for name in importers(library) if not name.startswith(("api/", SIMULATOR))} == set()


def test_the_simulator_is_independent() -> None:
    for name, modules in IMPORTS.items():
        inside = name.startswith(SIMULATOR)
        ours = {m for m in modules if m.partition(".")[0] in PACKAGES}
        assert all(m.startswith("worker.simulator") == inside for m in ours) or not inside, name
        assert inside or not any(m.startswith("worker.simulator") for m in ours), name


def test_redis_keys_are_defined_in_one_file() -> None:
    literal = re.compile(r"""["']f?(tc:|arq:)""")
    spelled = {name_of(path) for path in SOURCES if literal.search(path.read_text("utf-8"))}
    spelled |= {name_of(path) for path in SOURCES if re.search(r'f"tc:', path.read_text("utf-8"))}
    assert spelled == {"broker/store/keys.py"}
    for script in (ROOT / "broker").glob("*/lua/*.lua"):
        derives = script == ROOT / "broker/queue/lua/common.lua"  # the queue is never on a cluster
        assert derives or not literal.search(script.read_text("utf-8")), script.name


def test_the_keys_of_the_queue_scripts_are_documented() -> None:
    """These scripts derive their keys themselves; each key has its definition, with type and lifetime, in keys.py."""
    documented = set(re.findall(r"""["']((?:tc|arq):[\w-]+:?)""", (ROOT / "broker/store/keys.py").read_text("utf-8")))
    for script in (ROOT / "broker/queue/lua").glob("*.lua"):
        spelled = set(re.findall(r"""["']((?:tc|arq):[\w-]*:?)""", script.read_text("utf-8")))
        assert spelled <= documented, script.name


def test_the_environment_is_read_in_one_file() -> None:
    readers = {name_of(path) for path in SOURCES if re.search(r"os\.(environ|getenv)", path.read_text("utf-8"))}
    assert readers == {"broker/runtime/environment.py"}


def test_files_have_at_most_400_lines() -> None:
    long = {name_of(path): n for path in SOURCES if (n := len(path.read_text("utf-8").splitlines())) > 400}
    assert long == {}


def test_functions_have_at_most_60_lines() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 60, f"{name_of(path)}: {node.name} has {lines} lines"


INCLUDED = ("common", "expired", "items", "resources", "webhook", "webhook_host", "secondary", "all_tenants")
"""Parts of scripts."""


def test_every_script_documents_its_arguments() -> None:
    for script in (ROOT / "broker").glob("*/lua/*.lua"):
        text = script.read_text("utf-8")
        if script.stem not in INCLUDED:
            header = text.split("\nlocal", 1)[0]
            takes = "ARGV" if script.parent.parent.name == "queue" else "KEYS"
            assert takes in header, script.name
            assert "-- Returns " in header, script.name


def test_lock_files_have_hashes_and_no_urls() -> None:
    for name in (*(path.name for path in ROOT.glob("requirements*.lock")), "tests/sdk/oldest.txt"):
        text = (ROOT / name).read_text("utf-8")
        assert "--hash=sha256:" in text
        assert not re.search(r"https?:|file:|--index-url|--find-links", text), name

"""Static checks of README, docs/ and the changelog: links, names, tables, and the site's pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from api.app import DIALECTS
from api.pages.openapi import document
from broker import events, records
from broker.cli.main import cli
from tests.acceptance.documents.pages import anchors, blocks, targets

ROOT = Path(__file__).parent.parent
README, REFERENCE, BENCHMARKS = ROOT / "README.md", ROOT / "docs/reference.md", ROOT / "docs/benchmarks.md"
ARCHITECTURE = ROOT / "docs/architecture.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
EXTRA = [page for name in ("CONTRIBUTING.md", "SECURITY.md") if (page := ROOT / name).exists()]
EXAMPLES = sorted((ROOT / "examples").glob("**/README.md"))
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "tests/FAULTS.md", *EXTRA, *DOCS, *EXAMPLES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_has_a_target(page: Path) -> None:
    for target in targets(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_readme_links_to_every_page() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in targets(README)}
    assert [page.name for page in DOCS if page not in linked] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_the_page_of_the_client_has_the_examples_of_its_readme() -> None:
    """So they are run with those of the page."""
    page = {block.text for block in blocks(ROOT / "docs/python-client.md")}
    examples = [block.text for block in blocks(ROOT / "clients/python/README.md")]
    assert examples
    assert set(examples) <= page


def test_blocks_without_a_language_are_only_on_two_pages() -> None:
    """A block without a language is a diagram or an excerpt. The only script fragment, in browsers.md, is run by
    tests/browser/test_eventsource.py."""
    for page in DOCS:
        plain = [str(block) for block in blocks(page) if not block.language]
        assert plain == [] or page in (ARCHITECTURE, REFERENCE)
    assert [block.page.name for page in (README, *DOCS) for block in blocks(page) if block.in_a_page] == ["browsers.md"]


# --- names ----------------------------------------------------------------------------------------------------------


def test_the_fields_of_a_generation_are_documented_in_their_order() -> None:
    table = REFERENCE.read_text("utf-8").partition("### The generation\n")[2].partition("###")[0]
    named = [name for row in re.findall(r"^\| (`.+?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert named == list(records.Generation.__struct_fields__)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_every_named_setting_and_metric_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    settings = REFERENCE.read_text("utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    names = {name for name in re.findall(r"\bTOKENCAST_[A-Z_]*[A-Z]\b", text) if f"{name}_…" not in text}
    assert {name for name in names if name not in settings} == set()
    sources = "".join(path.read_text("utf-8") for name in ("api", "broker", "worker") for path in python_files(name))
    metrics = {name.removesuffix("_total") for name in re.findall(r"`(tokencast_\w+)", text)}
    assert {name for name in metrics if f'"{name}"' not in sources} == set()


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_reference_has_every_command() -> None:
    listed = re.findall(r"^\| (.*?) \|", section("Commands"), re.MULTILINE)
    named = {name for cell in listed for name in re.findall(r"`([a-z-]+)[^`]*`", cell)}
    assert set(cli.commands) - named == set()
    assert named - {"command"} <= set(cli.commands)


def test_the_reference_has_every_route() -> None:
    listed = {match.partition("?")[0] for match in re.findall(r"(/[\w/{}.]*)", "".join(first_cells(section("Routes"))))}
    assert listed - {"/"} == set(document(DIALECTS)["paths"])


def test_the_reference_has_every_event() -> None:
    listed = set(re.findall(r"`(\w+)`", "".join(first_cells(section("Events").partition("\n### ")[0]))))
    assert listed - {"event"} == set(events.NAMES.values()) | {"gap", "gone", "reset"}


def section(title: str) -> str:
    return REFERENCE.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| (.*?) \|", text, re.MULTILINE)


def test_the_figures_of_the_readme_are_in_the_benchmarks() -> None:
    def rows(page: Path) -> set[tuple[str, ...]]:
        lines = re.findall(r"^\| W\d+ .*", page.read_text("utf-8"), re.MULTILINE)
        return {tuple(cell.strip() for cell in line.split("|")[1:7]) for line in lines}

    assert len(rows(README)) == 6
    assert rows(README) <= rows(BENCHMARKS)


def test_files_named_in_the_architecture_exist() -> None:
    named = set(re.findall(r"`((?:api|broker|worker)/[\w/.]*)`", ARCHITECTURE.read_text("utf-8")))
    assert {name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()} == set()


def test_every_changelog_heading_is_a_dated_release() -> None:
    """In the format of https://keepachangelog.com."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases, kinds = re.findall(r"^## (.*)", text, re.MULTILINE), re.findall(r"^### (.*)", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert [name for name in releases[1:] if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", name)] == []
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# --- the site ---------------------------------------------------------------------------------------------------------


def test_the_site_has_every_page(tmp_path: Path) -> None:
    """`make docs` assembles its pages, links to each in the navigation, and breaks no link between them."""
    pages = tmp_path / "pages"
    subprocess.run([sys.executable, "docs/build_site.py", str(pages)], cwd=ROOT, check=True, timeout=30)
    navigation = re.findall(r"[\w-]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert sorted(navigation) == sorted(page.name for page in pages.glob("*.md"))
    assert not (pages / "kubernetes/secrets").exists()
    for page in pages.glob("*.md"):
        for target in targets(page):
            name, _, anchor = target.partition("#")
            if not re.match(r"[a-z]+:", target):
                file = pages / name if name else page
                assert file.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in anchors(file), f"{page.name}: {target}"

"""Assemble the pages of the documentation site in a directory: `python docs/build_site.py DIRECTORY`.

The Markdown files link to each other as files of the repository, so that they can be read there. On the site, README.md
is the home page, and CHANGELOG.md and tests/FAULTS.md are pages too. A link to any other file leads to the repository
if pyproject.toml names its URL, and becomes plain text otherwise.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "tests/FAULTS.md": "faults.md",
}
"""Files outside docs/, and the pages that they become."""
_CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<text>\[(?:[^][]|\[[^]]*\])*\])\((?P<target>[^)\s]+)\)")


def main(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    # secrets: what docs/kubernetes/secrets.sh makes
    shutil.copytree(ROOT / "docs", directory, ignore=shutil.ignore_patterns("secrets", "__pycache__", "*.py"))
    pages = {f"docs/{page.name}": page.name for page in (ROOT / "docs").glob("*.md")}
    pages |= {source: page for source, page in PAGES.items() if (ROOT / source).exists()}
    for source, page in pages.items():
        (directory / page).write_text(published((ROOT / source).read_text("utf-8"), source), "utf-8")


def published(markdown: str, source: str) -> str:
    """The text of a page with the links that it has on the site."""
    repository = repository_url()

    def moved(link: re.Match[str]) -> str:
        text, target = link["text"], link["target"]
        path, hash_sign, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return link[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if not (ROOT / path).exists():
            raise SystemExit(f"{source}: {target}: there is no such file")
        if path in PAGES:
            return f"{text}({PAGES[path]}{hash_sign}{anchor})"
        if path.startswith("docs/"):
            return f"{text}({path.removeprefix('docs/')}{hash_sign}{anchor})"
        return f"{text}({repository}/blob/main/{path})" if repository else text[1:-1]

    return outside_code(markdown, lambda text: _LINK.sub(moved, text))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Apply `change` to what is not code: what looks like a link in there is none."""
    parts: list[str] = []
    end = 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def repository_url() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    urls = {name.lower(): url for name, url in project.get("urls", {}).items()}
    named = [urls[name].rstrip("/") for name in ("repository", "source", "homepage") if name in urls]
    return next((url for url in named if re.match(r"https://git(hub|lab)\.com/", url)), "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Copy the browser libraries that the gateway serves into api/static/vendor: `make vendor`.

npm installs the versions of package-lock.json into .cache/vendor and checks their hashes. Install scripts are not run:
that of @scarf/scarf reports installations to its vendor. A file for browsers is stored compressed, as it is served; its
bytes before compression are those of the package. `manifest.json` in each folder has their hashes, which the tests
compare. To upgrade a library, change package.json, then run

    npm install --prefix tools/vendor --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved
    make vendor
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "tools/vendor/package-lock.json"
INSTALLED = ROOT / ".cache/vendor"
TARGET = ROOT / "api/static/vendor"
LIBRARIES = {
    "swagger-ui-dist": {
        "name": "swagger-ui",
        "served": ["swagger-ui-bundle.js", "swagger-ui.css"],
        "licences": ["LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"],
    },
    "marked": {"name": "marked", "served": ["lib/marked.esm.js"], "licences": ["LICENSE"]},
    "@highlightjs/cdn-assets": {"name": "highlight", "served": ["es/highlight.min.js"], "licences": ["LICENSE"]},
}
"""Packages, and which of their files are copied: those that browsers load, and the licences."""


def main() -> None:
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LOCK.with_name(name), INSTALLED)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=INSTALLED, check=True)
    packages = json.loads(LOCK.read_text("utf-8"))["packages"]
    for package, library in LIBRARIES.items():
        copy(package, packages[f"node_modules/{package}"], **library)


def copy(package: str, locked: dict[str, str], name: str, served: list[str], licences: list[str]) -> None:
    for old in TARGET.glob(f"{name}-[0-9]*"):
        shutil.rmtree(old)
    source, folder = INSTALLED / "node_modules" / package, TARGET / f"{name}-{locked['version']}"
    folder.mkdir(parents=True)
    for file in licences:
        shutil.copyfile(source / file, folder / Path(file).name)
    for file in served:
        (folder / f"{Path(file).name}.gz").write_bytes(gzip.compress((source / file).read_bytes(), 9, mtime=0))
    manifest = {
        "package": package,
        **{field: locked[field] for field in ("version", "license", "integrity")},
        "sha256": {Path(file).name: sha256(source / file) for file in (*served, *licences)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    print(f"Copied: {folder.relative_to(ROOT)}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

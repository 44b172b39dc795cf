"""Build a release: `make release`. Needs hatchling and cyclonedx-bom (requirements-release.lock).

It checks that the changelog and all packages have one version, and writes into dist/: wheel and sdist, the packages of
the clients, an SBOM (CycloneDX) of the locked dependencies, and SHA256SUMS. With a container engine it also builds the
image. At last it tags the commit. It sends nothing anywhere: .github/workflows/release.yml runs the same command for a
pushed tag, and publishes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    options = parsed()
    version = version_in("broker/version.py", r'__version__ = "(.+)"')
    problems = [*disagreements(version), *undocumented(version), *([] if options.dry_run else unready(version))]
    if problems:
        sys.exit("No release:\n" + "\n".join(f"- {problem}" for problem in problems))
    directory = Path(options.directory).resolve()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    build_packages(directory, npm="npm" not in options.without)
    write_sbom(directory / f"tokencast_broker-{version}.cdx.json", version)
    write_sums(directory)
    for path in sorted(directory.iterdir()):
        print(f"{path.stat().st_size:>10,}  {path.name}")
    if "image" not in options.without and has_engine():
        run("docker", "build", "--tag", f"{options.image_name}:{version}", ".")
        print(f"            image {options.image_name}:{version}")
    if options.dry_run:
        print(f"A dry run: v{version} is not tagged.")
    elif f"v{version}" not in output("git", "tag", "--points-at", "HEAD").split():
        run("git", "tag", "--annotate", f"v{version}", "--message", f"Tokencast {version}")
        print(f"Tagged. To publish: git push origin v{version}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make release", description="Arguments are given as ARGS='--dry-run'.")
    parser.add_argument("--dry-run", action="store_true", help="build only: no tag, and changes may be uncommitted")
    parser.add_argument("--directory", default=str(ROOT / "dist"), help="where the files go; it is emptied first")
    parser.add_argument("--without", action="append", default=[], choices=["image", "npm"], help="do not build this")
    parser.add_argument("--image-name", default="tokencast")
    return parser.parse_args()


# --- checks -----------------------------------------------------------------------------------------------------------

VERSIONS = {
    "charts/tokencast/Chart.yaml": (r"^version: (.+)$", r'^appVersion: "(.+)"$'),
    "docs/kubernetes/kustomization.yaml": (r'^ +newTag: "(.+)"$',),
    "clients/python/tokencast_client/version.py": (r'^__version__ = "(.+)"$',),
    "clients/typescript/package.json": (r'^  "version": "(.+)",$',),
}
"""Where else the version is written, as lines."""


def version_in(file: str, pattern: str) -> str:
    found = re.findall(pattern, (ROOT / file).read_text("utf-8"), re.MULTILINE)
    if len(found) != 1:
        sys.exit(f"No release: {file} has {len(found)} lines like {pattern}")
    return found[0]


def disagreements(version: str) -> Iterator[str]:
    for file, patterns in VERSIONS.items():
        for pattern in patterns:
            if (ROOT / file).exists() and (other := version_in(file, pattern)) != version:
                yield f"{file} says {other}, and broker/version.py {version}"


def undocumented(version: str) -> Iterator[str]:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.findall(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    if releases[:1] != [version]:
        yield f"the newest dated release in CHANGELOG.md is {releases[0] if releases else 'missing'}, and not {version}"


def unready(version: str) -> Iterator[str]:
    """What only a real release must not have."""
    unreleased = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("## [Unreleased]\n")[2].partition("\n## [")[0]
    if unreleased.strip():
        yield "CHANGELOG.md has entries under [Unreleased]"
    if changed := output("git", "status", "--porcelain").strip():
        yield f"there are uncommitted changes:\n{changed}"
    tagged = output("git", "tag", "--list", f"v{version}").strip()
    if tagged and tagged not in output("git", "tag", "--points-at", "HEAD").split():
        yield f"{tagged} is another commit"


# --- files ------------------------------------------------------------------------------------------------------------


def build_packages(directory: Path, *, npm: bool) -> None:
    for project in (ROOT, ROOT / "clients/python"):
        if (project / "pyproject.toml").exists():
            run(sys.executable, "-m", "hatchling", "build", "-d", str(directory), cwd=project)
    typescript = ROOT / "clients/typescript"
    if npm and (typescript / "package.json").exists():
        if not shutil.which("npm"):
            sys.exit("No release: the TypeScript client needs npm")
        if not (typescript / "node_modules").exists():
            run("npm", "ci", "--no-audit", "--no-fund", cwd=typescript)
        run("npm", "run", "build", "--if-present", cwd=typescript)
        run("npm", "pack", "--pack-destination", str(directory), cwd=typescript)


def write_sbom(file: Path, version: str) -> None:
    """The dependencies of the image."""
    options = ("--pyproject", "pyproject.toml", "--output-reproducible", "--spec-version", "1.6")
    # The warning says that the lock has no graph of dependencies, as a flat list has none.
    run(
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "cyclonedx_py",
        "requirements",
        *options,
        "-o",
        str(file),
        "requirements.lock",
    )
    sbom = json.loads(file.read_text("utf-8"))
    sbom["metadata"]["component"] |= {"version": version, "purl": f"pkg:pypi/tokencast-broker@{version}"}
    file.write_text(json.dumps(sbom, indent=2) + "\n", "utf-8")
    listed = {part["name"].lower() for part in sbom["components"]}
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    if missing := set(map(str.lower, locked)) - listed:
        sys.exit(f"No release: the SBOM lacks {', '.join(sorted(missing))}")


def write_sums(directory: Path) -> None:
    files = sorted(directory.iterdir())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (directory / "SHA256SUMS").write_text("".join(lines), "utf-8")


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"No release: {' '.join(command)} ended with {done.returncode}")


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def has_engine() -> bool:
    if not shutil.which("docker"):
        print("There is no docker: the image is not built.")
        return False
    if subprocess.run(("docker", "info"), capture_output=True).returncode:
        print("No container engine answers: the image is not built.")
        return False
    return True


if __name__ == "__main__":
    main()

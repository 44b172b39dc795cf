"""The README's examples, done as they stand there by `tests/acceptance/pages.py`, and what they have to show."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import pytest

from tests.acceptance.documents.pages import Reader, reading
from tests.support import ROOT
from worker.simulator.directives import seed_of
from worker.simulator.text import pieces

README = ROOT / "README.md"
ANSWER = "".join(pieces(seed_of([{"role": "user", "content": "Explain the GIL in CPython."}]), 60))


@pytest.fixture(scope="module")
async def reader() -> AsyncGenerator[Reader, None]:
    async with reading(README) as reader:
        yield reader


async def test_the_curl_examples(reader: Reader) -> None:
    """Enqueue and follow; then resume, read, stop and forget the same generation."""
    first, second = printed(reader, "sh", "curl -s")
    assert first.count("event: created") == 1
    assert "event: created" not in second  # it begins behind it
    assert (first + second).count("event: completed") == 2
    assert '"status":"completed"' in second


async def test_the_python_example(reader: Reader) -> None:
    (output,) = printed(reader, "python", "broker.enqueue")
    assert output.split()[:2] == ["0-1", "created"]
    assert output.split()[-1] == "completed"


@pytest.mark.parametrize("language", ["python", pytest.param("js", marks=pytest.mark.node)])
async def test_the_sdk_examples(reader: Reader, language: str) -> None:
    """tests/acceptance/openai/test_openai_python.py and …_node.py run them with every SDK."""
    said = printed(reader, language, "chat.completions.create")
    if not said:
        pytest.skip(f"not run: {'; '.join(reader.left_out)}")
    assert said == [ANSWER + "\n"]


async def test_the_command_line_examples(reader: Reader) -> None:
    (output,) = printed(reader, "sh", "tokencast enqueue")
    assert ANSWER in output
    assert len(set(re.findall(r"gen_\w{34}", output))) > 1


async def test_the_files_it_names_exist() -> None:
    for path in re.findall(r"`((?:api|broker|worker)/[\w/.]+)`", README.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def printed(reader: Reader, language: str, holding: str) -> list[str]:
    """By the blocks that hold this."""
    return [said for block, said in reader.said.items() if block.language == language and holding in block.text]

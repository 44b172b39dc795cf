"""Every example in docs/*.md, run unchanged; every error code, compared with the documentation."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import errors as api_errors
from api.dialects.openai_chat import frames as chat
from api.middleware import guard
from broker import errors
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.documents.pages import blocks, reading
from tests.support import DEADLINE, ROOT, clean_environment, gateway, wait_until, worker
from worker import counters as tally

DOCS_HOME = ROOT / "docs"
DOCS = sorted(DOCS_HOME.glob("*.md"))
CONCEPTS, SIZING, TROUBLESHOOTING = (DOCS_HOME / name for name in ("concepts.md", "sizing.md", "troubleshooting.md"))


def with_needs(page: Path) -> object:
    text = page.read_text("utf-8")
    needs = {"node": "```js" in text, "engine": "redis-cli -u" in text}
    return pytest.param(
        page, id=page.stem, marks=[getattr(pytest.mark, name) for name, is_so in needs.items() if is_so]
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [with_needs(page) for page in DOCS])
async def test_every_example_of_a_page_runs(page: Path) -> None:
    async with reading(page) as reader:
        if page == SIZING:
            check_figures(next(said for block, said in reader.outputs.items() if "memory.py" in block.text and said))
    if reader.missing_tools:
        pytest.skip(f"skipped: {'; '.join(sorted(reader.missing_tools))}")


def check_figures(printed: str) -> None:
    """The memory of one log: JSON × 1.1, its text, and 2 KiB; 260 to 275 bytes per event."""
    rows = [list(map(int, line.split())) for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 2
    for events, size, memory, each in rows:
        assert 1.1 * size < memory < 1.25 * size + 2048, (events, size, memory)
        assert 255 < each < 280


async def test_the_documented_loop_continues_at_another_gateway(redis: EmbeddedRedis, sim: str, tmp_path: Path) -> None:
    """The loop of concepts.md, while the only gateway is replaced."""
    port = str(free_port())
    [loop] = [block.text for block in blocks(CONCEPTS) if block.file == "follow.py"]
    (tmp_path / "follow.py").write_text(loop.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    async with worker(redis.url, sim):
        async with gateway(redis.url, PORT=port) as first:
            gid = (await first.create({"model": "sim", "messages": [{"role": "user", "content": LONG}]}))["id"]
            following = await asyncio.create_subprocess_exec(
                *(sys.executable, "follow.py", gid), env=clean_environment(), cwd=tmp_path, stdout=subprocess.PIPE
            )

            async def has_subscriber_and_text() -> bool:
                metrics = (await first.http.get("/metrics")).text
                return bool(re.search(r"^tokencast_subscribers\{.*\} 1", metrics, re.M)) and bool(
                    (await first.get(gid))["text"]
                )

            await wait_until(has_subscriber_and_text)
        assert following.returncode is None
        async with gateway(redis.url, PORT=port) as second, asyncio.timeout(DEADLINE):
            printed, _ = await following.communicate()
            expected = (await second.ended(gid))["text"]
    assert (following.returncode, printed.decode()) == (0, expected + "\n")


LONG = "Tell me a story. [[sim length=150 speed=50]]"

# --- names ----------------------------------------------------------------------------------------------------------


def test_every_error_code_is_explained() -> None:
    section = TROUBLESHOOTING.read_text("utf-8").partition("\n## Error codes\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    explained = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)} - {"code"}
    assert explained == set(codes())


def codes() -> Iterator[str]:
    """The codes of all errors that a caller can see."""

    def below(kind: type[errors.BrokerError]) -> Iterator[type[errors.BrokerError]]:
        yield kind
        for each in kind.__subclasses__():
            if each.__module__ == errors.__name__:  # the command line's own errors report an unusable response
                yield from below(each)

    yield from {each.code for each in below(errors.BrokerError)} - {
        "misconfigured",
        "gap",
    }  # raised at the start, and in Python only
    yield from tally.CODES
    yield from (code for code, _ in chat._ENDS.values())
    yield from api_errors._MESSAGES
    for path in ("broker/request/body.py", "api/query.py"):
        yield from re.findall(r'code="(\w+)"', (ROOT / path).read_text("utf-8"))
    yield from api_errors._BY_CODE
    yield from guard.STATUS
    yield "not_implemented"  # HTTP itself: the name in HTTPStatus
    told = (ROOT / "api/errors.py").read_text("utf-8")
    yield from re.findall(r'(?:error_response|return error_response)\(.*?"([a-z]+_[a-z_]+)", ', told)

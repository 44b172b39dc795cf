"""Programs that use the TypeScript client as it is published: with strict settings, and those of docs/typescript.md and
docs/react.md."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.clients.typescript import PACKAGE, built, consumer
from tests.integration.broker.webhooks.scene import announced, delivering, settings
from tests.servers.webhook_receiver import SECRET
from tests.support import ROOT, Gateway, clean_environment, gather, wait_until

pytestmark = pytest.mark.node

STRICT = {
    "strict": True,
    "exactOptionalPropertyTypes": True,
    "noUncheckedIndexedAccess": True,
    "noPropertyAccessFromIndexSignature": True,
    "verbatimModuleSyntax": True,
    "skipLibCheck": False,
    "target": "ES2022",
    "jsx": "react-jsx",
}
SERVICE = {"module": "NodeNext", "lib": ["ES2022"], "types": ["node"], "noEmit": True}
BUNDLED = {"module": "ESNext", "moduleResolution": "Bundler", "noEmit": True}
IN_A_PAGE = {**BUNDLED, "lib": ["ES2022", "DOM", "DOM.Iterable"], "types": []}
DOCUMENTED = {"module": "NodeNext", "lib": ["ES2022", "DOM"], "types": ["node"], "outDir": "compiled"}
PROGRAMS = ("ask", "follow", "read", "batch", "receiver")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that depends on the package as it is published."""
    return consumer(tmp_path_factory.mktemp("consumer"))


def compile_programs(project: Path, options: dict[str, Any], files: dict[str, str]) -> None:
    for name, text in files.items():
        (project / name).write_text(text)
    configuration = {"compilerOptions": {**STRICT, **options}, "files": list(files)}
    (project / "tsconfig.json").write_text(json.dumps(configuration))
    done = subprocess.run([PACKAGE / "node_modules/.bin/tsc", "-p", "."], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def documented() -> dict[str, str]:
    """The programs of docs/typescript.md and docs/react.md by their file names."""
    found: dict[str, str] = {}
    for page in ("typescript", "react"):
        text = (ROOT / f"docs/{page}.md").read_text("utf-8")
        for language, code in re.findall(r"^```(tsx?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            named = re.match(r"// (\S+)\n", code)
            found[named[1] if named else f"{page}-{len(found)}.{language}"] = code
    return found


@pytest.mark.parametrize(("file", "options"), [("service.ts", SERVICE), ("page.tsx", IN_A_PAGE)])
def test_strict_programs_compile(project: Path, file: str, options: dict[str, Any]) -> None:
    """In a service without the types of a browser, and in a page without those of Node.js."""
    compile_programs(project, options, {file: (PACKAGE / "tests/types" / file).read_text("utf-8")})


async def test_the_documented_programs_run(project: Path, redis: EmbeddedRedis, running: Gateway) -> None:
    files = documented()
    assert {f"{name}.ts" for name in PROGRAMS} <= set(files)
    port = str(free_port())
    files["receiver.ts"] = files["receiver.ts"].replace("9000", port)
    compile_programs(project, DOCUMENTED, files)
    async with AsyncExitStack() as stack:
        processes: dict[str, asyncio.subprocess.Process] = {}
        for name in PROGRAMS:
            processes[name] = await asyncio.create_subprocess_exec(
                *(built(), f"compiled/{name}.js"),
                env=clean_environment(TOKENCAST_URL=running.url, TOKENCAST_WEBHOOK_SECRET=SECRET),
                cwd=project,
                stdout=asyncio.subprocess.PIPE,
            )
            stack.callback(end, processes[name])
        receiver = processes.pop("receiver")
        outputs = await gather(*(process.communicate() for process in processes.values()))
        printed = {name: output.decode() for name, (output, _) in zip(processes, outputs, strict=True)}
        assert printed["ask"].endswith("\ncompleted\n")
        assert printed["follow"] == "true true\n"
        assert printed["read"] == "completed true 0\n"
        assert sorted(line.split()[1] for line in printed["batch"].splitlines())[3:] == ["true"] * 3
        assert {process.returncode for process in processes.values()} == {0}
        await deliver_to(redis, f"http://127.0.0.1:{port}/hook")
        assert receiver.returncode is None


def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


async def deliver_to(redis: EmbeddedRedis, url: str) -> None:
    """Deliver a webhook of a completed generation until the receiver has accepted it."""
    async with connect(settings=settings(redis.url)) as broker, delivering(broker):
        gid = await announced(broker, url)

        async def is_accepted() -> bool:
            return any(one.error is None for one in (await broker.deliveries(gid)).data)

        await wait_until(is_accepted)

"""The programs in examples/. Those that need packages of their own run if `make examples` has installed these."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.dev.embedded_redis import EmbeddedRedis, free_port
from tests.acceptance.openai.sdk import NODE, node
from tests.servers.webhook_receiver import SECRET
from tests.support import DEADLINE, ROOT, Frame, Gateway, clean_environment, gateway, texts, wait_until, worker

EXAMPLES = ROOT / "examples"
PYTHON = ROOT / ".cache/examples/bin/python"
INSTALLED = (ROOT / ".cache/examples/.ready").exists()
needs_packages = pytest.mark.skipif(not INSTALLED, reason="`make examples` has not installed the packages")
QUESTION = {"question": "Explain the GIL in CPython."}


@asynccontextmanager
async def serving(
    name: str, tokencast: str, python: Path | str = sys.executable, **variables: str
) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of an example's server."""
    port = str(free_port())
    environment = clean_environment(PYTHONPATH="", PORT=port, TOKENCAST_URL=tokencast, **variables)
    process = await asyncio.create_subprocess_exec(
        str(python), str(EXAMPLES / name), env=environment, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE):
            said = b""
            while b"Uvicorn running" not in said:
                line = await process.stderr.readline()
                assert line, said.decode()
                said += line
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as client:
            yield client
    finally:
        process.terminate()
        await process.communicate()


async def finished(*command: Path | str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, next to this process's own servers."""
    options |= {"capture_output": True, "text": True, "timeout": DEADLINE}
    return await asyncio.to_thread(subprocess.run, [*command], **options)


def frames(text: str) -> list[Frame]:
    return [Frame.parse(block.encode()) for block in text.split("\n\n") if block.strip()]


async def test_starlette_passes_streams_on_to_the_user_who_asked(running: Gateway) -> None:
    async with serving("starlette/app.py", running.url) as app:
        assert (await app.get("/")).status_code == 200
        once = {"idempotency-key": "one"}
        first, second = [await app.post("/ask", json=QUESTION, headers=once) for _ in range(2)]
        gid = first.json()["id"]
        assert (first.status_code, second.json()["id"]) == (202, gid)
        path = f"/answers/{gid}/events"
        whole = await app.get(path)
        assert whole.headers["content-type"].startswith("text/event-stream")
        events = frames(whole.text)
        assert texts(events) == (await running.ended(gid))["text"] != ""
        rest = await app.get(path, headers={"last-event-id": events[9].id or ""})
        assert [event.id for event in frames(rest.text)] == [event.id for event in events[10:]]
        assert (await app.get(path, headers={"last-event-id": events[-1].id or ""})).status_code == 204
        assert (await app.get(path, headers={"cookie": "user=anna"})).status_code == 404


@pytest.mark.node
async def test_route_handlers_of_nextjs_pass_streams_on(running: Gateway, tmp_path: Path) -> None:
    """Outside of Next.js: they are functions from a Request to a Response. The page and its types are only compiled."""
    binary = node()
    app = EXAMPLES / "nextjs/app"
    ask, events = "api/answers/route", "api/answers/[id]/events/route"
    options = "--bundle --platform=node --format=esm --packages=external --log-level=warning --out-extension:.js=.mjs"
    sources = [str(app / f"{name}.ts") for name in (ask, events)] + [str(app / "page.tsx"), str(app / "layout.tsx")]
    command = [NODE / "node_modules/.bin/esbuild", *sources, *options.split(), f"--outdir={tmp_path}"]
    done = await finished(*command, cwd=EXAMPLES / "nextjs")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "run.mjs").write_text(f"""
        import {{ POST }} from "./{ask}.mjs";
        import {{ GET }} from "./{events}.mjs";
        const body = JSON.stringify({json.dumps(QUESTION)});
        const asked = {{ method: "POST", body, headers: {{ "idempotency-key": "n" }} }};
        const post = () => POST(new Request("http://x/", asked));
        const [{{ id }}, again] = [await (await post()).json(), await (await post()).json()];
        const get = (last) => GET(
          new Request("http://x/", last ? {{ headers: {{ "last-event-id": last }} }} : {{}}),
          {{ params: Promise.resolve({{ id }}) }},
        );
        const events = await get(), text = await events.text();
        const last = [...text.matchAll(/^id: (.*)$/gm)].map(([, id]) => id);
        const rest = await (await get(last[9])).text(), {{ status }} = await get(last.at(-1));
        console.log(JSON.stringify({{ id, again, type: events.headers.get("content-type"), text, rest, status }}));
    """)
    done = await finished(binary, tmp_path / "run.mjs", env=clean_environment(TOKENCAST_URL=running.url))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["again"] == {"id": result["id"]}
    assert result["type"].startswith("text/event-stream")
    assert texts(frames(result["text"])) == (await running.ended(result["id"]))["text"] != ""
    assert frames(result["rest"]) == frames(result["text"])[10:]
    assert result["status"] == 204


@needs_packages
async def test_fastapi_hands_out_tokens(running: Gateway) -> None:
    async with serving("fastapi/app.py", running.url, PYTHON) as app, httpx2.AsyncClient(timeout=DEADLINE) as reader:
        asked = (await app.post("/ask", json=QUESTION, headers={"idempotency-key": "two"})).json()
        events = frames((await reader.get(asked["events_url"])).text)
        assert texts(events) == (await running.ended(asked["id"]))["text"] != ""
        renewed = (await app.post(f"/answers/{asked['id']}/token")).json()
        assert renewed["expires_at"] >= asked["expires_at"]
        assert (await app.get("/")).status_code == 200


@needs_packages
@pytest.mark.parametrize("name", ["langchain", "llamaindex"])
async def test_a_framework_streams_through_the_gateway(running: Gateway, name: str) -> None:
    environment = clean_environment(PYTHONPATH="", TOKENCAST_URL=running.url)
    done = await finished(PYTHON, EXAMPLES / name / "ask.py", f"A question of {name}", env=environment)
    assert done.returncode == 0, done.stderr
    [newest] = (await running.http.get("/v1/generations?limit=1")).json()["data"]
    text = (await running.ended(newest["id"]))["text"]
    assert newest["priority"] == 1
    assert done.stdout == (f"{newest['id']}\n" if name == "langchain" else "") + text + "\n"


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a PostgreSQL server of the test's own, on a Unix socket. It refuses to run as root."""
    found = [
        Path(tool).parent
        for tool in [shutil.which("initdb"), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        if tool
    ]
    if not found:
        pytest.skip("PostgreSQL is not installed")
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        run = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        subprocess.run(
            [found[-1] / "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync"], check=True, **run
        )
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        control = [found[-1] / "pg_ctl", "-D", "data", "-o", options, "-w", "-l", "log"]
        subprocess.run([*control, "start"], check=True, **run)
        yield f"postgresql:///postgres?host={folder}&user=postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **run)


def rows(database: str) -> list[list[Any]]:
    query = "SELECT generation, status, text, metadata FROM results"
    program = f"import json, psycopg; print(json.dumps(psycopg.connect({database!r}).execute({query!r}).fetchall()))"
    return json.loads(subprocess.run([PYTHON, "-c", program], capture_output=True, check=True).stdout)


@needs_packages
async def test_a_webhook_is_stored_in_postgresql_once(own_redis: EmbeddedRedis, sim: str, database: str) -> None:
    settings = {"TOKENCAST_WEBHOOK_SECRET": SECRET, "TOKENCAST_WEBHOOK_ALLOW_PRIVATE": "1"}
    async with gateway(own_redis.url, **settings) as api, worker(own_redis.url, sim, **settings):
        secret = {"TOKENCAST_WEBHOOK_SECRET": SECRET, "DATABASE_URL": database}
        async with serving("webhook-postgres/receiver.py", api.url, PYTHON, **secret) as receiver:
            hook = str(receiver.base_url).rstrip("/") + "/hook"
            body = {
                "model": "sim-fast",
                "messages": [{"role": "user", "content": "Hi"}],
                "metadata": {"order": "17"},
                "tokencast": {"webhook": {"url": hook}},
            }
            gid = (await api.create(body))["id"]

            async def delivered(times: int) -> bool:
                attempts = (await api.http.get(f"/v1/generations/{gid}/deliveries")).json()["data"]
                return [attempt["status"] for attempt in attempts] == [204] * times

            await wait_until(lambda: delivered(1))
            await api.http.post(f"/v1/generations/{gid}/deliveries/1/redeliver")
            await wait_until(lambda: delivered(2))
            text = (await api.get(gid))["text"]
            assert rows(database) == [[gid, "completed", text, {"order": "17"}]]
            assert (await receiver.post("/hook", json={"data": {"id": gid}})).status_code == 401

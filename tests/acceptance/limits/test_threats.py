"""Attacks from outside, and by somebody with access to Redis."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from api.app import create_app
from broker import Broker
from broker.dev.embedded_redis import EmbeddedRedis
from broker.ids import new_id
from broker.store import keys
from broker.store.preflight import PATCHED
from tests.servers.tcp import tcp_server
from tests.support import ROOT, Gateway, Service, gateway, request_body, upstream_calls, wait_until, worker

KEYS = ",".join(f"{t}:{hashlib.sha256(f'key-{t}'.encode()).hexdigest()}" for t in ("anna", "anna2", "ben"))
ANNA, BEN = {"authorization": "Bearer key-anna"}, {"authorization": "Bearer key-ben"}


@dataclass
class Trap:
    """A server that must not be contacted."""

    port: int
    visits: list[bytes] = field(default_factory=list[bytes])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def start_trap() -> AsyncGenerator[Trap, None]:
    async def visit(reader: StreamReader, writer: StreamWriter) -> None:
        trap.visits.append(await reader.read(1000))
        writer.close()

    async with tcp_server(visit) as address:
        trap = Trap(int(address.rpartition(":")[2]))
        yield trap


@pytest.fixture(scope="module")
async def trap() -> AsyncGenerator[Trap, None]:
    async with start_trap() as trap:
        yield trap


@pytest.fixture(scope="module")
async def proxied_system(redis: EmbeddedRedis, sim: str, trap: Trap) -> AsyncGenerator[tuple[Gateway, Service], None]:
    """A gateway and a worker whose environment names the trap as its proxy."""
    proxy = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"), trap.url)
    variables = {**proxy, "NO_PROXY": "", "TOKENCAST_MODELS": "*"}
    async with gateway(redis.url, **variables) as api, worker(redis.url, sim, **variables) as work:
        yield api, work


# --- F1: pickles ---------------------------------------------------------------------------------------------


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


async def test_a_pickle_in_the_queue_is_never_loaded(
    proxied_system: tuple[Gateway, Service], broker: Broker, tmp_path: Path
) -> None:
    """In place of a job and of its result: the next generation runs, and the pickle is not loaded."""
    api, work = proxied_system
    opened, bomb = tmp_path / "opened", pickle.dumps(Bomb(tmp_path / "opened"))
    execute = broker.queue.redis.execute
    ticket = f"{new_id(int(time.time() * 1000), 'default')}.1"
    for name in (keys.arq_job(ticket), f"arq:result:{ticket}"):
        await execute("SET", name, bomb, "PX", 60_000)
    await execute("ZADD", keys.READY, 0.5, ticket)
    generation = await api.create(request_body("[[sim length=1 speed=1000]]", "sim"))
    assert (await api.ended(generation["id"]))["status"] == "completed"
    await wait_until(lambda: _empty(broker))
    assert work.process.returncode is None
    assert not opened.exists()
    pickle.loads(bomb)
    assert opened.exists()


async def _empty(broker: Broker) -> bool:
    return await broker.queue.depth() == 0


# --- F2, F3: the called address --------------------------------------------------------------------------------------


async def test_no_caller_can_choose_the_upstream_address(
    proxied_system: tuple[Gateway, Service], sim: str, trap: Trap
) -> None:
    """Not with a field, a header, a model name, or a URL in a message: all calls go to the configured upstream."""
    api, _ = proxied_system
    label = "[[sim label=ssrf length=1 speed=1000]]"
    named = dict.fromkeys(("base_url", "api_base", "openai_base_url", "upstream", "endpoint", "webhook"), trap.url)
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"{trap.url}/x.png"}}]}
    metadata = {"base_url": trap.url, "callback": trap.url}
    body = {
        "model": "sim",
        "messages": [image, {"role": "user", "content": label}],
        "metadata": metadata,
        **named,
        "extra_body": named,
        "extra_headers": {"host": "127.0.0.1"},
    }
    headers = {"x-base-url": trap.url, "x-forwarded-host": f"127.0.0.1:{trap.port}", "referer": trap.url}
    for path in ("/v1/generations", "/v1/chat/completions"):
        response = await api.http.post(path, json=body, headers=headers)
        assert (await api.ended(response.headers["x-generation-id"]))["status"] == "completed", response.text
        assert response.headers.get("location", "/").startswith("/")
    assert len(await upstream_calls(sim, "ssrf")) == 2
    for model in (trap.url, f"//127.0.0.1:{trap.port}", "http://169.254.169.254/latest", f"http://[::1]:{trap.port}"):
        generation = await api.create(request_body(model=model))
        assert (await api.ended(generation["id"]))["status"] == "failed"
    assert trap.visits == []


async def test_redirects_and_environment_proxies_are_ignored(
    proxied_system: tuple[Gateway, Service], trap: Trap
) -> None:
    """Neither body nor key is sent to the target of a redirect or to the proxy of the environment."""
    api, _ = proxied_system
    generation = await api.create(request_body(f"[[sim fault=redirect to={trap.url}/chat/completions]]", "sim"))
    ended = await api.ended(generation["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "bad_upstream_response")
    assert trap.visits == []


# --- F6, F7: keys --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def keyed(redis: EmbeddedRedis) -> AsyncGenerator[Gateway, None]:
    async with gateway(redis.url, TOKENCAST_API_KEYS=KEYS) as started:
        yield started


async def test_other_tenants_generations_look_unknown_on_every_route(keyed: Gateway, broker: Broker) -> None:
    """For all routes of the application."""
    gid = (await keyed.create(**ANNA))["id"]
    unknown = gid[:-4] + "0000"
    checked = 0
    for route in create_app(broker).routes:
        if isinstance(route, Route) and "{id}" in route.path:
            for method in sorted((route.methods or set()) - {"HEAD"}):
                answers = [
                    await keyed.http.request(method, route.path.replace("{id}", one), headers=BEN)
                    for one in (gid, unknown)
                ]
                assert [answer.status_code for answer in answers] == [404, 404], (method, route.path)
                assert answers[0].content == answers[1].content
                checked += 1
    assert checked >= 6
    untouched = await keyed.http.get(f"/v1/generations/{gid}", headers=ANNA)
    assert untouched.status_code == 200
    assert untouched.json()["status"] != "cancelled"


async def test_only_the_exact_key_is_accepted(keyed: Gateway) -> None:
    """Neither its digest nor a similar string is accepted."""
    digest = hashlib.sha256(b"key-anna").hexdigest()
    for wrong in (digest, f"anna:{digest}", "key-ann", "key-annA", "key-anna key-ben", "anna", "\u00e9", "*"):
        refused = await keyed.http.get("/v1/generations", headers={"authorization": f"Bearer {wrong}".encode()})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key"), wrong
    for right in ("key-anna", "key-anna2", "key-ben"):
        allowed = await keyed.http.get("/v1/generations", headers={"authorization": f"Bearer {right}"})
        assert allowed.status_code == 200


# --- F9, F10: pages and logs -------------------------------------------------------------------------------------


async def test_the_page_runs_only_its_own_scripts(keyed: Gateway) -> None:
    page = await keyed.http.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:", page.text)
    for name in re.findall(r'<script[^>]*\bsrc="([^"]+)"', page.text):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", (await keyed.http.get(name)).text
        )


HOSTILE = (
    "%0d%0aset-cookie:%20a=b",
    "%1b[31mred",
    "%e2%80%a8line",
    "%00",
    "%c2%9b2J",
    "gen_%0a2026-01-01%20INFO%20forged",
)


@pytest.mark.parametrize("style", ["text", "json"])
async def test_requests_cannot_inject_log_lines_or_headers(redis: EmbeddedRedis, style: str) -> None:
    async with gateway(redis.url, TOKENCAST_LOG=style) as api:
        answers = [await api.http.get(f"{path}/{hostile}") for hostile in HOSTILE for path in ("/v1/generations", "")]
        answers += [
            await api.http.get("/v1/generations", params={"status": hostile, "after": hostile}) for hostile in HOSTILE
        ]
        for name in ("a\r\nb", "\x1b[31m", "\u2028", "\x00"):
            answers.append(await api.http.post("/v1/generations", json=request_body(model=name)))
        sent = {"x-request-id": "forged", "last-event-id": b"\x1b[31m", "idempotency-key": b"\xff\x9b" * 200}
        answers.append(await api.http.post("/v1/generations", json=request_body(), headers=sent))
        for answer in answers:
            assert 400 <= answer.status_code < 500
            assert "set-cookie" not in answer.headers
            assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
        await api.process.says("→ 404")
        lines = list(api.process.lines)
    assert len(lines) >= len(answers)
    for line in lines:
        assert line.isprintable(), line
        if style == "json":
            assert json.loads(line)["message"].isprintable()
        else:
            assert re.match(
                r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) +(tokencast|uvicorn)\.", line
            ), line


# --- F11 -----------------------------------------------------------------------------------------------------


def test_the_composed_redis_is_a_release_without_known_vulnerabilities() -> None:
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    images = re.findall(r"image: redis:(\d+)\.(\d+)", compose)
    assert [(int(major), int(minor)) >= max(PATCHED["Redis"]) for major, minor in images] == [True]

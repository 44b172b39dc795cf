"""No log line of a gateway or worker contains a key, a token, a password, a prompt or an output, for any request and
any failure. All secrets here are canaries, and nothing else contains the word "canary"."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from broker import connect
from broker.dev.embedded_redis import EmbeddedRedis
from broker.store import keys
from tests.servers.tcp import tcp_server
from tests.support import DEADLINE, Gateway, gateway, request_body, wait_until, worker

KEY, UPSTREAM_KEY, SECRET, PASSWORD = (
    "canary-key",
    "canary-upstream-key",
    "canary-signing-" + "s" * 32,
    "canary-password",
)
BEARER = {"authorization": f"Bearer {KEY}"}
PROMPT, OUTPUT = "The canary sings.", "A canary's answer."
ANSWERS = ("ok", "400", "401", "429", "500", "error", "chunk", "cut", "page")


@asynccontextmanager
async def indiscreet_upstream() -> AsyncGenerator[str, None]:
    """An upstream whose error responses contain the complete request, with its headers, in every field. The model
    selects the error."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        body = (await reader.readexactly(int(length[1]))).decode() if length else ""
        echo = f"{head}\n{body}"
        error = json.dumps({"error": dict.fromkeys(("message", "type", "param", "code"), echo)})
        model = json.loads(body)["model"] if body else "401"
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": OUTPUT}, "finish_reason": None}]})
        whole = chunk.replace("null", '"stop"')
        streams = {
            "ok": f"data: {whole}\n\ndata: [DONE]\n\n",
            "error": f"data: {chunk}\n\ndata: {error}\n\n",
            "chunk": f"data: {chunk}\n\ndata: {echo!r}\n\n",
            "cut": f"data: {chunk}\n\n",
        }
        status, kind = ("200", "text/event-stream") if model in streams else (model, "application/json")
        if model == "page":
            status, kind = "200", f"text/html; {OUTPUT}"
        writer.write(f"HTTP/1.1 {status} {OUTPUT}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())
        writer.write(streams.get(model, error).encode())
        writer.close()

    async with tcp_server(serve) as address:
        yield f"http://{address}/v1"


async def raw(api: Gateway, request: str) -> bytes:
    """Send a request that no client library would send."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode("latin-1"))
    writer.write_eof()
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    return answer


async def run_all_replies(api: Gateway) -> list[str]:
    """Request each of the upstream's replies in both dialects; return the generations."""
    gids: list[str] = []
    for model in ANSWERS:
        body = request_body(PROMPT, model, metadata={"about": PROMPT}, user=PROMPT)
        created = await api.create(body, **BEARER, **{"idempotency-key": f"canary-{model}"})
        gids.append(created["id"])
        await wait_until(lambda gid=created["id"]: has_ended(api, gid))
        for stream in (True, False):
            body_variant = {**body, "stream": stream, "messages": [{"role": "user", "content": f"{PROMPT} {stream}"}]}
            await api.http.post("/v1/chat/completions", json=body_variant, headers=BEARER)
    return gids


async def has_ended(api: Gateway, gid: str) -> bool:
    return (await api.http.get(f"/v1/generations/{gid}", headers=BEARER)).json()["ended_at"] is not None


async def request_everything(api: Gateway, gid: str, token: str) -> list[int]:
    """Call all routes with the token, with misplaced and wrong keys, and with bad bodies; return the statuses."""
    one = f"/v1/generations/{gid}"
    paths = [one, f"{one}/events", f"{one}/events?stream=true", f"{one}/cancel", f"{one}/token", "/v1/generations",
             "/v1/chat/completions", f"/v1/chat/completions/{gid}", "/v1/models", "/v1/models/m", "/v1/none",
             "/healthz", one[:-4] + "0000", "/", f"{one}/events%3Ftoken={token}", f"{one}/events&token={token}",
             f"{one}/events;token={token}", f"{one}/events%26token%3D{token}", f"/v1/none%23token={KEY}"]  # fmt: skip
    statuses: list[int] = []
    for path in paths:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            if method == "DELETE" and path == one:
                continue
            for shown in (token, KEY, "canary"):
                url = f"{path}{'&' if '?' in path else '?'}token={shown}&api_key={KEY}&after={PROMPT}"
                headers = {"x-api-key": KEY, "authorization": f"Basic {KEY}", "last-event-id": KEY, "referer": url}
                statuses.append((await api.http.request(method, url, headers=headers)).status_code)
        for content in (PROMPT, json.dumps([PROMPT]), json.dumps({"model": PROMPT, "messages": PROMPT})):
            response = await api.http.post(path, content=content, headers={**BEARER, "idempotency-key": "canary" * 50})
            statuses.append(response.status_code)
        statuses.append((await api.http.get(path, headers={"authorization": "Bearer canary-wrong"})).status_code)
    return statuses


async def send_invalid_requests(api: Gateway, gid: str, token: str) -> None:
    url = f"/v1/generations/{gid}/events?token={token}"
    for request in (
        f"GET {url}\r\n\r\n",
        f"GET {url} HTTP/9.9\r\n\r\n",
        f"GET {url} {KEY} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"{KEY} {url} HTTP/1.1\r\n\r\n",
        f"GET http://{KEY}:{KEY}@x:{KEY}{url} HTTP/1.1\r\nHost: {KEY}\r\n\r\n",
        f"GET {url} HTTP/1.1\r\nAuthorization: Bearer {KEY}\0\r\n\r\n",
        f"GET {url} HTTP/1.1\r\nAuthorization Bearer {KEY}\r\n\r\n",
        f"GET {url} HTTP/1.1\r\n{KEY}\xff: {KEY}\r\nHost: localhost\r\n\r\n",
        f"POST {url} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {KEY}\r\n\r\n{PROMPT}",
        f"POST {url} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{PROMPT}",
        f"POST {url} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n",
        f"GET {url} HTTP/1.1\r\nHost: localhost\r\nX-Long: {KEY * 10_000}\r\n\r\n",
        f"GET {url} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "\r\n" * 9 + url,
    ):
        await raw(api, request)


@pytest.mark.parametrize("style", ["text", "json"])
async def test_no_secret_is_in_any_log(style: str) -> None:
    async with EmbeddedRedis() as redis, indiscreet_upstream() as upstream, connect(redis.url) as broker:
        await broker.store.redis.execute("CONFIG", "SET", "requirepass", PASSWORD)
        url = redis.url.replace("redis://", f"redis://default:{PASSWORD}@")
        shared = {"TOKENCAST_LOG": style, "TOKENCAST_SECRET": SECRET, "TOKENCAST_RETRY_BUDGET": "2"}
        shared |= {"TOKENCAST_QUEUE_TIMEOUT": "2"}
        shared |= {"TOKENCAST_API_KEYS": f"anna:{hashlib.sha256(KEY.encode()).hexdigest()}", "TOKENCAST_MODELS": "*"}
        async with gateway(url, **shared) as api, worker(url, upstream, **shared, OPENAI_API_KEY=UPSTREAM_KEY) as work:
            gids = await run_all_replies(api)
            made = (await api.http.post(f"/v1/generations/{gids[0]}/token", headers=BEARER)).json()
            statuses = await request_everything(api, gids[0], made["token"])
            assert {200, 400, 401, 404, 405} <= set(statuses)
            await send_invalid_requests(api, gids[0], made["token"])
            async with connect(url) as admitted:  # the older connection may have been idle for too long
                await admitted.store.redis.execute("HSET", keys.meta(gids[1]), "mt", PROMPT)
            crash = await api.http.get(f"/v1/generations/{gids[1]}", headers={**BEARER, "connection": "close"})
            redis.kill()
            away = await api.http.get(f"/v1/generations/{gids[0]}", params={"token": made["token"]})
            assert (crash.status_code, away.status_code) == (500, 503)
            await work.says("events wait|the queue at")
            for process in (work, api.process):
                process.send(signal.SIGTERM)
                await process.wait()
        lines = api.process.lines + work.lines
        hidden = ("canary", made["token"], made["token"].rpartition(".")[2], SECRET, PASSWORD)
        assert [line for line in lines for secret in hidden if secret.lower() in line.lower()] == []
        echo = "\n".join(lines)
        for something in (
            "→ 401",
            "→ 405",
            "→ 503",
            "Traceback",
            "Invalid HTTP request",
            "upstream_truncated",
            gids[0],
        ):
            assert something in echo

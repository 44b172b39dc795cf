"""Areas: limits, a full and a draining gateway, invalid HTTP, and a gateway without Redis."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import httpx2

from tests.contract.recorder import Exchange, Recorder, exchanged, raw_exchange
from tests.contract.stage import ENDLESS, KEYS, RUNNING, Stage, last_event_written, named, prompt, running
from tests.support import DEADLINE, Gateway, wait_until

GENERATIONS, CHAT = "/v1/generations", "/v1/chat/completions"


async def record(stage: Stage, rec: Recorder) -> None:
    await _tenant(stage, rec)
    await _heartbeats(stage, rec)
    await _invalid_http(stage.keyed, rec)
    gid = await running(rec, stage.of("edge"), "followed")
    await _creations(stage.edge, rec)
    async with _following(stage.edge, f"{GENERATIONS}/{gid}/events?after=latest") as (reader, begun):
        await _full(stage.edge, rec, gid)
        await _draining(stage.edge, rec, gid)
        stage.edge.process.send(signal.SIGINT)
        rest = begun + await reader.read()
        final_frames = raw_exchange(f"GET {GENERATIONS}/{gid}/events?after=latest", rest)
        final_frames.body[:] = re.sub(rb"(: hb\n\n)+", b": hb\n\n", final_frames.body)
        rec.add("until the gateway stops", final_frames)


async def _tenant(stage: Stage, rec: Recorder) -> None:
    api = stage.of("limited", at=stage.limited)
    for number in range(RUNNING):
        gid = await named(rec, api, f"limited {number}", prompt(ENDLESS))
        await last_event_written(api, gid)
    waiting = await named(rec, api, "that waits", prompt(""))
    await rec.ask("one that waits", api, "GET", f"{GENERATIONS}/{waiting}")
    await rec.ask("one more than may wait", api, "POST", GENERATIONS, body=prompt(""))
    await rec.ask("one more than may wait", api, "POST", CHAT, body=prompt(""))
    await rec.ask("cancel the one that waits", api, "POST", f"{GENERATIONS}/{waiting}/cancel")
    await rec.ask("its events", api, "GET", f"{GENERATIONS}/{waiting}/events")
    waiting = await named(rec, api, "that waits too", prompt(""))
    async with api.http.stream("GET", f"{GENERATIONS}/{gid}/events") as following:
        begun = following.aiter_raw()
        await anext(begun)
        page = {"accept": "application/json"}
        await rec.ask("one subscriber more", api, "GET", f"{GENERATIONS}/{gid}/events")
        await rec.ask("a page, which is no subscriber", api, "GET", f"{GENERATIONS}/{gid}/events?limit=1", headers=page)
        await rec.ask("one subscriber more", api, "GET", f"{CHAT}/{gid}?stream=true")
        await rec.ask("one subscriber more", api, "GET", f"/v1/events?generation={gid}")


async def _creations(edge: Gateway, rec: Recorder) -> None:
    """One is allowed per minute. A minute may end between two requests."""
    content = json.dumps(prompt(ENDLESS)).encode()
    head = _head("POST", GENERATIONS, f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n")
    for _ in range(4):
        answer = raw_exchange(f"POST {GENERATIONS}", await exchanged(edge, head + content))
        if answer.status == 429:
            rec.add("one creation more in a minute", answer)
            return
    raise AssertionError("no creation was refused")


async def _heartbeats(stage: Stage, rec: Recorder) -> None:
    api = stage.of("edge")
    gid = await running(rec, api, "silent")
    edge = stage.of("edge", at=stage.edge)
    for path, beat in (
        (f"{GENERATIONS}/{gid}/events?after=latest", ": hb\n\n"),
        (f"{CHAT}/{gid}?stream=true", ": hb\n"),
        ("/v1/activity?after=latest", ": hb\n\n"),
    ):
        async with rec.open("heartbeat", edge, "GET", path, headers={"connection": "close"}) as stream:
            await stream.stop_at(beat)
    async with rec.open("heartbeat", edge, "GET", f"/v1/events?generation={gid}@latest") as stream:
        await stream.until_block(": hb\n")
        end = stream.body.index(b"\n\n", stream.body.index(b": hb\n"))
        del stream.body[end + 2 :]
    await edge.http.aclose()
    await api.http.post(f"{GENERATIONS}/{gid}/cancel")


async def _invalid_http(api: Gateway, rec: Recorder) -> None:
    await rec.raw("invalid HTTP", api, b"HELLO\r\n\r\n", "HELLO")
    await rec.raw("a long head", api, b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /xxx…")
    await rec.raw("HTTP/1.0", api, b"GET /healthz HTTP/1.0\r\n\r\n", "GET /healthz HTTP/1.0")
    close = b"Host: localhost\r\nConnection: close\r\n\r\n"
    await rec.raw("a connection that is to be closed", api, b"GET /healthz HTTP/1.1\r\n" + close, "GET /healthz")
    await rec.raw("another method", api, b"BREW / HTTP/1.1\r\n" + close, "BREW /")


def _head(method: str, path: str, headers: str = "") -> bytes:
    key = f"Authorization: Bearer {KEYS['edge']}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{key}{headers}\r\n".encode()


async def _asked(edge: Gateway, method: str, path: str, headers: str = "", content: bytes = b"") -> Exchange:
    if content:
        headers += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return raw_exchange(f"{method} {path}", await exchanged(edge, _head(method, path, headers) + content))


@asynccontextmanager
async def _following(edge: Gateway, path: str) -> AsyncGenerator[tuple[asyncio.StreamReader, bytes], None]:
    """A connection that the gateway serves, and the data read so far. Retried while earlier connections are closing."""
    url = httpx2.URL(edge.url)
    async with asyncio.timeout(DEADLINE):
        while True:
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(_head("GET", path))
            begun = await _until_heartbeat(reader)
            if begun:
                break
            writer.close()
    try:
        yield reader, begun
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _until_heartbeat(reader: asyncio.StreamReader) -> bytes:
    """Read up to the first heartbeat; empty if the gateway refused the stream."""
    read = b""
    while b": hb" not in read:
        piece = await reader.read(65536)
        if not piece:
            return b""
        read += piece
    return read


async def _full(edge: Gateway, rec: Recorder, gid: str) -> None:
    """Two more connections reach the limit of three."""
    path = f"{GENERATIONS}/{gid}/events?after=latest"
    content = json.dumps(prompt("", stream=True)).encode()
    async with _following(edge, path), _following(edge, path):
        for method, at, headers, body in (
            ("GET", f"{GENERATIONS}/{gid}", "", b""),
            ("POST", GENERATIONS, "", content),
            ("POST", CHAT, "", content),
            ("GET", f"{CHAT}/{gid}?stream=true", "", b""),
            ("GET", f"{GENERATIONS}/{gid}/events", "", b""),
            ("GET", f"{GENERATIONS}/{gid}/events", "Accept: application/json\r\n", b""),
            ("HEAD", f"{GENERATIONS}/{gid}/events", "", b""),
            ("GET", "/v1/activity", "Accept: text/event-stream\r\n", b""),
            ("GET", "/v1/activity", "", b""),
            ("GET", "/", "", b""),
            ("GET", "/healthz", "", b""),
            ("GET", "/readyz", "", b""),
        ):
            rec.add("full", await _asked(edge, method, at, headers, body))


async def _draining(edge: Gateway, rec: Recorder, gid: str) -> None:
    edge.process.send(signal.SIGTERM)

    async def draining() -> bool:
        return b" 503 " in (await exchanged(edge, _head("GET", "/readyz"))).partition(b"\r\n")[0]

    await wait_until(draining)
    content = json.dumps(prompt("", stream=True)).encode()
    for method, path, body in (
        ("GET", "/readyz", b""),
        ("GET", "/healthz", b""),
        ("GET", f"{GENERATIONS}/{gid}/events", b""),
        ("GET", f"/v1/events?generation={gid}", b""),
        ("GET", "/v1/activity", b""),
        ("POST", CHAT, content),
        ("GET", GENERATIONS + "?limit=1&status=failed", b""),
    ):
        rec.add("draining", await _asked(edge, method, path, "", body))


async def outage(stage: Stage, rec: Recorder) -> None:
    """A separate area, recorded last, because it kills Redis."""
    api = stage.of("native")
    gid = await running(rec, api, "that was there")
    stage.redis.kill()

    async def unready() -> bool:
        return (await api.http.get("/readyz")).status_code == 503

    await wait_until(unready)
    for method, path in (
        ("GET", "/readyz"),
        ("GET", "/healthz"),
        ("GET", GENERATIONS),
        ("GET", f"{GENERATIONS}/{gid}"),
        ("GET", f"{GENERATIONS}/{gid}/events"),
        ("HEAD", f"{GENERATIONS}/{gid}/events"),
        ("POST", f"{GENERATIONS}/{gid}/cancel"),
        ("DELETE", f"{GENERATIONS}/{gid}"),
        ("GET", f"{CHAT}/{gid}"),
        ("GET", f"{CHAT}/{gid}?stream=true"),
        ("GET", f"/v1/events?generation={gid}"),
        ("GET", "/v1/activity"),
        ("GET", "/v1/models"),
        ("GET", "/v1/overview"),
    ):
        await rec.ask("without Redis", api, method, path)
    for path in (GENERATIONS, CHAT):
        await rec.ask("without Redis", api, "POST", path, body=prompt(""))

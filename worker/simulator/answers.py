"""Responses to a request: a stream, one completion, an error, or what a fault sends instead."""

import asyncio
import json
from typing import Any

from aiohttp import web

from worker.simulator import chunks
from worker.simulator.calls import Call
from worker.simulator.directives import Ask
from worker.simulator.faults import FAULTS, Blow, Refusal
from worker.simulator.frames import TOKENS, Frame, Kind
from worker.simulator.replies import REPLIES
from worker.simulator.stream import Wire, send

SLOW_HEADERS = 2.0  # seconds; default delay of the fault slow-headers
PIECE = 0.005  # seconds between the pieces of a reply, so that each is a write of its own
DEFAULT_CUT = 7  # bytes; default of `fault=split`
PORTAL = "<!DOCTYPE html><html><head><title>Guest network</title></head><body>Please sign in.</body></html>"


async def answer(request: web.Request, ask: Ask, call: Call) -> web.StreamResponse:
    """Respond to a request as its directive says, or as its fault says."""
    fault, how = FAULTS.get(ask.fault), ask.directive
    if how.reply and ask.stream:
        return await play(request, ask, call)
    if fault and fault.refusal:
        return refuse(call, fault.refusal, name=ask.fault, retry_after=how.retry_after)
    match ask.fault:
        case "html":
            return _instead(call, 200, PORTAL, {"Content-Type": "text/html; charset=utf-8"})
        case "huge-error":
            page = "<!DOCTYPE html>" + "x" * how.bytes
            return _instead(call, 500, page, {"Content-Type": "text/html; charset=utf-8"})
        case "json-200":
            error = json.dumps(error_body(Refusal(200, "server_error", "sim_error", "Something went wrong.")))
            return _instead(call, 200, error, {"Content-Type": "application/json"})
        case "redirect":
            return _instead(call, 307, "", {"Location": how.to or _next_door(request)})
        case "mute":
            await asyncio.Event().wait()
        case "slow-headers":
            await asyncio.sleep(how.delay or SLOW_HEADERS)
            ask = ask.but(delay=0.0)
        case _:
            pass
    return await (stream if ask.stream else whole)(request, ask, call)


async def stream(request: web.Request, ask: Ask, call: Call) -> web.StreamResponse:
    """Respond with a stream of chunks."""
    how, fault = ask.directive, FAULTS.get(ask.fault)
    unit = frozenset({Kind.CONTENT}) if ask.length else TOKENS
    frames = chunks.plan(ask, call.number)
    if fault and fault.strike:
        frames = fault.strike(frames, Blow(how.at, unit, how.bytes))
    response = web.StreamResponse(headers=_headers(call, "text/event-stream; charset=utf-8"))
    wire = await _open(request, response, ask, call)
    await send(wire, ask, frames, unit, call)
    _end(call, ask)
    return response


async def play(request: web.Request, ask: Ask, call: Call) -> web.StreamResponse:
    """Respond with a reply from the table, piece by piece."""
    reply = REPLIES[ask.directive.reply]
    if reply.to_stream_options and ask.names_usage:
        reply = reply.to_stream_options
    headers = _headers(call, reply.content_type) | reply.headers
    response = web.StreamResponse(status=reply.status, headers=headers)
    wire = await _open(request, response, ask, call)
    for part in reply.parts:
        if isinstance(part, bytes):
            await wire.write(part)
            await asyncio.sleep(PIECE)
        else:
            await asyncio.sleep(part)
    match reply.end:
        case "cut" | "reset":
            await wire.break_off(b"", reset=reply.end == "reset")
        case "hold":
            await asyncio.Event().wait()
        case "comments":
            await wire.do(Frame(Kind.COMMENTS))
        case _:
            await wire.write(b"", last=True)
    call.end(f"reply:{ask.directive.reply}")
    return response


async def whole(request: web.Request, ask: Ask, call: Call) -> web.StreamResponse:
    """Respond with one ChatCompletion, after the time that streaming it would have taken."""
    how = ask.directive
    await asyncio.sleep(how.delay + (ask.length / how.speed if how.speed else 0.0))
    body = json.dumps(chunks.completion(ask, call.number), ensure_ascii=False).encode()
    if ask.fault == "bad-json":
        body = body[:-1]
    elif ask.fault == "bad-utf8-content":
        body = body.replace(b'"content": "', b'"content": "\xc3\x28', 1)
    response = web.StreamResponse(headers=_headers(call, "application/json"))
    if ask.fault != "gzip":
        response.content_length = len(body)
    wire = await _open(request, response, ask, call)
    match ask.fault:
        case "rst" | "cut" | "truncate":
            await wire.break_off(body, reset=ask.fault == "rst")
        case "stall":
            await wire.write(body[: len(body) // 2])
            await asyncio.Event().wait()
        case _:
            call.chunks_sent = ask.n * ask.length
            await wire.write(body, last=True)
    _end(call, ask)
    return response


def refuse(call: Call, refusal: Refusal, *, name: str = "", retry_after: float | None = None) -> web.StreamResponse:
    """Respond with an error in OpenAI's form. `name`: name of the fault; default: the status."""
    call.fault = name or str(refusal.status)
    headers = {"Content-Type": "application/json"}
    if retry_after is not None:
        headers["Retry-After"] = f"{retry_after:g}"
    return _instead(call, refusal.status, json.dumps(error_body(refusal)), headers)


def error_body(refusal: Refusal) -> dict[str, Any]:
    """Return an error body in OpenAI's form."""
    error = {
        "message": refusal.message,
        "type": refusal.type,
        "param": refusal.param,
        "code": refusal.code,
    }
    return {"error": error}


def _instead(call: Call, status: int, body: str, headers: dict[str, str]) -> web.StreamResponse:
    call.began()
    call.end(f"fault:{call.fault}")
    return web.Response(status=status, body=body.encode(), headers=_headers(call) | headers)


async def _open(request: web.Request, response: web.StreamResponse, ask: Ask, call: Call) -> Wire:
    """Send the headers; return the wire that sends the body."""
    how = ask.directive
    if ask.fault == "gzip" and "gzip" in request.headers.get("Accept-Encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    await response.prepare(request)
    if ask.fault == "silent":
        await asyncio.Event().wait()
    if request.transport is None:
        raise ConnectionResetError("the client disconnected before the headers were sent")
    return Wire(
        response=response,
        transport=request.transport,
        call=call,
        newline=b"\r\n" if how.newlines == "crlf" and ask.stream else b"\n",
        keepalive=how.keepalive if ask.stream else 0.0,
        cut=how.split or (DEFAULT_CUT if ask.fault == "split" else 0),
        trickle=(1 / how.speed if how.speed else 0.0) if ask.fault == "trickle" else None,
    )


def _end(call: Call, ask: Ask) -> None:
    fault = FAULTS.get(ask.fault)
    call.end(f"fault:{ask.fault}" if fault and fault.spoils else "completed")


def _headers(call: Call, content_type: str | None = None) -> dict[str, str]:
    headers = {"Server": "upstream-sim", "x-request-id": f"req_sim_{call.number}", "Cache-Control": "no-cache"}
    return headers | {"Content-Type": content_type} if content_type else headers


def _next_door(request: web.Request) -> str:
    """Return this server's URL with the next port, on which usually nothing listens."""
    port = request.url.port or 80
    return str(request.url.with_port(port + 1))

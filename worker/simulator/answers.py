"""Responses to a request: a stream, one completion, an error, or what a fault sends instead."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from worker.simulator import chunks
from worker.simulator.calls import Call
from worker.simulator.directives import ChatRequest
from worker.simulator.faults import FAULTS, FaultPosition, Refusal
from worker.simulator.frames import TOKENS, Frame, Kind
from worker.simulator.quota import retry_headers
from worker.simulator.replies import REPLIES
from worker.simulator.stream import Wire, send

SLOW_HEADERS = 2.0  # seconds; default delay of the fault slow-headers
PIECE = 0.005  # seconds between the pieces of a reply, so that each is a write of its own
DEFAULT_SPLIT = 7  # bytes; default of `fault=split`
PORTAL = "<!DOCTYPE html><html><head><title>Guest network</title></head><body>Please sign in.</body></html>"


async def answer(request: web.Request, chat: ChatRequest, call: Call) -> web.StreamResponse:
    """Respond to a request as its directive says, or as its fault says."""
    fault, options = FAULTS.get(chat.fault), chat.directive
    if options.reply and chat.stream:
        return await send_reply(request, chat, call)
    if fault and fault.refusal:
        return refuse(call, fault.refusal, name=chat.fault, headers=retry_headers(options.retry_after, None))
    match chat.fault:
        case "html":
            return _plain_response(call, 200, PORTAL, {"Content-Type": "text/html; charset=utf-8"})
        case "huge-error":
            page = "<!DOCTYPE html>" + "x" * options.bytes
            return _plain_response(call, 500, page, {"Content-Type": "text/html; charset=utf-8"})
        case "json-200":
            error = json.dumps(error_body(Refusal(200, "server_error", "sim_error", "Something went wrong.")))
            return _plain_response(call, 200, error, {"Content-Type": "application/json"})
        case "redirect":
            return _plain_response(call, 307, "", {"Location": options.to or _next_port_url(request)})
        case "mute":
            await asyncio.Event().wait()
        case "slow-headers":
            await asyncio.sleep(options.delay or SLOW_HEADERS)
            chat = chat.with_directive(delay=0.0)
        case _:
            pass
    return await (stream if chat.stream else complete)(request, chat, call)


async def stream(request: web.Request, chat: ChatRequest, call: Call) -> web.StreamResponse:
    """Respond with a stream of chunks."""
    options, fault = chat.directive, FAULTS.get(chat.fault)
    unit = frozenset({Kind.CONTENT}) if chat.length else TOKENS
    frames = chunks.plan(chat, call.number)
    if fault and fault.transform:
        frames = fault.transform(frames, FaultPosition(options.at, unit, options.bytes))
    response = web.StreamResponse(headers=_headers(call, "text/event-stream; charset=utf-8"))
    wire = await _open(request, response, chat, call)
    await send(wire, chat, frames, unit, call)
    _end(call, chat)
    return response


async def send_reply(request: web.Request, chat: ChatRequest, call: Call) -> web.StreamResponse:
    """Respond with a reply from the table, piece by piece."""
    reply = REPLIES[chat.directive.reply]
    if reply.with_stream_options and chat.has_stream_options:
        reply = reply.with_stream_options
    headers = _headers(call, reply.content_type) | reply.headers
    response = web.StreamResponse(status=reply.status, headers=headers)
    wire = await _open(request, response, chat, call)
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
            await wire.perform(Frame(Kind.COMMENTS))
        case _:
            await wire.write(b"", last=True)
    call.end(f"reply:{chat.directive.reply}")
    return response


async def complete(request: web.Request, chat: ChatRequest, call: Call) -> web.StreamResponse:
    """Respond with one ChatCompletion, after the time that streaming it would have taken."""
    options = chat.directive
    await asyncio.sleep(options.delay + (chat.length / options.speed if options.speed else 0.0))
    body = json.dumps(chunks.completion(chat, call.number), ensure_ascii=False).encode()
    if chat.fault == "bad-json":
        body = body[:-1]
    elif chat.fault == "bad-utf8-content":
        body = body.replace(b'"content": "', b'"content": "\xc3\x28', 1)
    response = web.StreamResponse(headers=_headers(call, "application/json"))
    if chat.fault != "gzip":
        response.content_length = len(body)
    wire = await _open(request, response, chat, call)
    match chat.fault:
        case "rst" | "cut" | "truncate":
            await wire.break_off(body, reset=chat.fault == "rst")
        case "stall":
            await wire.write(body[: len(body) // 2])
            await asyncio.Event().wait()
        case _:
            call.chunks_sent = chat.n * chat.length
            await wire.write(body, last=True)
    _end(call, chat)
    return response


def refuse(
    call: Call, refusal: Refusal, *, name: str = "", headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Respond with an error in OpenAI's form. `name`: name of the fault; default: the status."""
    call.fault = name or str(refusal.status)
    headers = {"Content-Type": "application/json", **(headers or {})}
    return _plain_response(call, refusal.status, json.dumps(error_body(refusal)), headers)


def error_body(refusal: Refusal) -> dict[str, Any]:
    """Return an error body in OpenAI's form."""
    error = {
        "message": refusal.message,
        "type": refusal.type,
        "param": refusal.param,
        "code": refusal.code,
    }
    return {"error": error}


def _plain_response(call: Call, status: int, body: str, headers: dict[str, str]) -> web.StreamResponse:
    call.mark_started()
    call.end(f"fault:{call.fault}")
    return web.Response(status=status, body=body.encode(), headers=_headers(call) | headers)


async def _open(request: web.Request, response: web.StreamResponse, chat: ChatRequest, call: Call) -> Wire:
    """Send the headers; return the wire that sends the body."""
    options = chat.directive
    if chat.fault == "gzip" and "gzip" in request.headers.get("Accept-Encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    await response.prepare(request)
    if chat.fault == "silent":
        await asyncio.Event().wait()
    if request.transport is None:
        raise ConnectionResetError("the client disconnected before the headers were sent")
    return Wire(
        response=response,
        transport=request.transport,
        call=call,
        newline=b"\r\n" if options.newlines == "crlf" and chat.stream else b"\n",
        keepalive=options.keepalive if chat.stream else 0.0,
        split=options.split or (DEFAULT_SPLIT if chat.fault == "split" else 0),
        trickle=(1 / options.speed if options.speed else 0.0) if chat.fault == "trickle" else None,
    )


def _end(call: Call, chat: ChatRequest) -> None:
    fault = FAULTS.get(chat.fault)
    call.end(f"fault:{chat.fault}" if fault and fault.spoils else "completed")


def _headers(call: Call, content_type: str | None = None) -> dict[str, str]:
    headers = {"Server": "upstream-sim", "x-request-id": f"req_sim_{call.number}", "Cache-Control": "no-cache"}
    headers.update(call.rate_headers)
    return headers | {"Content-Type": content_type} if content_type else headers


def _next_port_url(request: web.Request) -> str:
    """Return this server's URL with the next port, on which usually nothing listens."""
    port = request.url.port or 80
    return str(request.url.with_port(port + 1))

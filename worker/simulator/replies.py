"""The table of replies as real upstreams send them, byte for byte: usual ones, unusual but meaningful ones, and errors.

Observed with vLLM, SGLang, llama.cpp, Ollama, Azure, Gemini, Mistral, MiniMax, DeepSeek, OpenRouter, LiteLLM, and
gateways built on FastAPI. A streamed request selects an entry of `REPLIES` with `[[sim reply=NAME]]`.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Part = bytes | float
"""Bytes of one write, or seconds of a pause."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, piece by piece. `end`: what happens to the connection after the last piece."""

    parts: tuple[Part, ...]
    end: Literal["clean", "cut", "reset", "hold", "comments"] = "clean"
    status: int = 200
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    with_stream_options: "Reply | None" = None
    """Reply to a request that has `stream_options`, instead of this one."""


def event(data: Any, name: str = "") -> bytes:
    """Return one event; a string is not encoded."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(reason: Any = None, index: int = 0, **delta: Any) -> bytes:
    """Return a chunk of one choice in the usual form."""
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return event(
        {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 0, "model": "sim", "choices": [choice]}
    )


def call(arguments: Any = None, name: Any = None, **more: Any) -> dict[str, Any]:
    """Return a piece of a tool call."""
    function = {"name": name, "arguments": arguments}
    return {
        **more,
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


def calls(*pieces: dict[str, Any]) -> bytes:
    """Return a chunk with pieces of tool calls."""
    return chunk(tool_calls=list(pieces))


def refusal(status: int, body: Any) -> Reply:
    return Reply((json.dumps(body).encode(),), status=status, content_type="application/json")


GOOD, MORNING, STOP = chunk(content="Good "), chunk(content="morning"), chunk("stop")
TEXT = (GOOD, MORNING)
DONE = event("[DONE]")
CALLED = chunk("tool_calls")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COUNTED = event({"choices": [], "usage": USAGE})
BOM = b"\xef\xbb\xbf"


def parts(text: str) -> bytes:
    """Return a chunk whose content is a list of typed parts, as Mistral's reasoning models send it."""
    return chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": text}]}])


def ended(*pieces: Part, end: Literal["clean", "cut", "reset", "hold", "comments"] = "clean") -> Reply:
    """Return a stream of these pieces."""
    return Reply(pieces, end)


def done(*pieces: Part) -> Reply:
    """Return a stream of these pieces, a `stop` chunk and [DONE]."""
    return Reply((*pieces, STOP, DONE))


def called(*pieces: bytes) -> Reply:
    """Return a stream as `done` does, with the finish reason of tool calls."""
    return Reply((*pieces, CALLED, DONE))


def _choice(choice: Any, **more: Any) -> bytes:
    return event({"choices": [choice], **more})


_FORBIDDEN_EXTRA = [
    {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
]
_STREAM = Reply((*TEXT, STOP, DONE))
_WHOLE = {"role": "assistant", "content": "Good morning"}
_JSON = {"object": "chat.completion", "choices": [{"index": 0, "message": _WHOLE, "finish_reason": "stop"}]}


def _rejecting_options(status: int, body: Any) -> Reply:
    return Reply(_STREAM.parts, with_stream_options=refusal(status, body))


REPLIES: dict[str, Reply] = {
    # Usual replies.
    "plain": done(*TEXT),
    "counted": Reply((*TEXT, STOP, COUNTED, DONE)),
    "no-done": ended(*TEXT, STOP),
    "truncated": ended(*TEXT),
    # Fields that change their type.
    "parts-then-text": done(chunk(role="assistant", content=""), parts("first thought "), parts("second"), *TEXT),
    "parts-first": done(parts("first thought "), parts("second"), *TEXT),
    "parts-of-text": done(chunk(content=[{"type": "text", "text": "Good "}]), MORNING),
    "parts-of-reasoning": done(
        chunk(content="", reasoning_content=""), chunk(reasoning_content=[{"type": "text", "text": "thought"}]), *TEXT
    ),
    "arguments-object": called(calls(call("", "lookup", index=0, id="call_1")), calls(call({"city": "Oslo"}, index=0))),
    "content-number": done(GOOD, chunk(content=7)),
    "index-text": done(event({"choices": [{"index": "0", "delta": {"content": "Good "}}]}), MORNING),
    # Null and empty values.
    "tool-calls-null": done(chunk(content="Good ", tool_calls=None), chunk(content="morning", tool_calls=None)),
    "tool-calls-empty": done(chunk(content="Good ", tool_calls=[]), chunk(content="morning", tool_calls=[])),
    "tool-calls-null-then-one": called(
        chunk(content=None, tool_calls=None),
        calls(call('{"city":"Oslo"}', "lookup", index=0, id="call_1")),
        chunk(content=None, tool_calls=None),
    ),
    "delta-null": done(_choice({"index": 0, "delta": None, "finish_reason": None}), *TEXT),
    "id-emptied": called(
        calls(call("", "lookup", index=0, id="call_1")), calls(call('{"city":"Oslo"}', "", index=0, id=""))
    ),
    "id-nulled": called(
        calls(call("", "lookup", index=0, id="call_1")), calls(call('{"city":"Oslo"}', index=0, id=None))
    ),
    "role-emptied": done(chunk(role="assistant", content="Good "), chunk(role="", content="morning")),
    "content-emptied": done(*TEXT, chunk(content=""), chunk(content=None)),
    # Finish reasons that are empty, that mean failure, or that are unknown.
    "reason-empty-cut": ended(chunk("", content="Good "), chunk("", content="morning")),
    "reason-null-cut": ended(chunk("null", content="Good "), chunk("null", content="morning")),
    "reason-empty-done": ended(chunk("", content="Good "), chunk("", content="morning"), DONE),
    "reason-empty-after": ended(*TEXT, STOP, chunk(""), DONE),
    "reason-in-each": ended(chunk("stop", content="Good "), 0.3, chunk("stop", content="morning"), DONE),
    "reason-abort": ended(GOOD, chunk("abort"), DONE),
    "reason-error": ended(GOOD, chunk("error"), DONE),
    "reason-error-with-text": ended(chunk("error", content="Good "), DONE),
    "reason-unfinished-cut": ended(chunk("unfinished", content="Good "), chunk("NULL", content="morning")),
    "reason-overloaded": ended(GOOD, chunk("insufficient_system_resource"), DONE),
    "reason-outside": ended(*TEXT, event({"choices": [{"index": 0, "delta": {}}], "finish_reason": "stop"})),
    "reason-eos": ended(*TEXT, chunk("eos"), DONE),
    # The reply is complete, and the connection does not end properly.
    "cut-after-stop": ended(*TEXT, STOP, end="cut"),
    "reset-after-stop": ended(*TEXT, STOP, end="reset"),
    "cut-after-usage": ended(*TEXT, STOP, COUNTED, end="cut"),
    "reset-in-the-middle": ended(*TEXT, end="reset"),
    "cut-after-both": ended(chunk(content="Good "), chunk(index=1, content="a"), STOP, chunk("stop", 1), end="cut"),
    "cut-after-one": ended(chunk(content="Good "), chunk(index=1, content="a"), STOP, end="cut"),
    "held-after-stop": ended(*TEXT, STOP, end="hold"),
    "comments-after-stop": ended(*TEXT, STOP, end="comments"),
    "usage-a-second-later": Reply((*TEXT, STOP, 1.0, COUNTED, DONE)),
    "usage-then-held": ended(*TEXT, STOP, COUNTED, end="hold"),
    "noise-after-stop": ended(*TEXT, STOP, event("{"), DONE),
    "error-after-stop": ended(*TEXT, STOP, event({"error": {"message": "cannot count the tokens"}}), DONE),
    # Tool calls that are distinguished by something other than their index.
    "same-index": called(
        calls(call('{"a":1}', "lookup", index=0, id="call_1")), calls(call('{"b":2}', "weather", index=0, id="call_2"))
    ),
    "same-index-one-delta": called(
        calls(call('{"a":1}', "lookup", index=0, id="call_1"), call('{"b":2}', "weather", index=0, id="call_2"))
    ),
    "same-index-in-pieces": called(
        calls(call("", "lookup", index=0, id="call_1")),
        calls(call('{"a":1}', index=0)),
        calls(call("", "weather", index=0, id="call_2")),
        calls(call('{"b":2}', index=0)),
    ),
    "no-index-no-id": called(calls(call('{"a":1}', "lookup", id="")), calls(call('{"b":2}', "weather", id=""))),
    "no-index-own-ids": called(
        calls(call('{"a":1}', "lookup", id="call_1")), calls(call('{"b":2}', "weather", id="call_2"))
    ),
    "interleaved-calls": called(
        calls(call('{"a"', "lookup", index=0, id="call_1")),
        calls(call('{"b"', "weather", index=1, id="call_2")),
        calls(call(":1}", index=0)),
        calls(call(":2}", index=1)),
    ),
    "name-repeated": called(
        *(calls(call(text, "lookup", index=0, id="call_1")) for text in ("", '{"city":', '"Oslo"}'))
    ),
    "name-split": called(
        calls(call("", "look", index=0, id="call_1")), calls(call("", "up", index=0)), calls(call('{"a":1}', index=0))
    ),
    "details-text": done(
        *(
            chunk(content="", reasoning_details=[{"index": 0, "format": "v1", "type": "reasoning.text", **piece}])
            for piece in ({"text": "first "}, {"text": "thought"}, {"signature": "c2ln"})
        ),
        *TEXT,
    ),
    # Errors without the usual wrapper, and objects that only resemble errors.
    "error-event": ended(event({"code": "OutOfRange", "message": "top_p is out of range"}, "error"), DONE),
    "error-event-text": ended(GOOD, event('"the model is gone"', "error"), DONE),
    "error-status-object": ended(
        event({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "the balance is used up"}}), DONE
    ),
    "error-bare": ended(GOOD, event({"code": 429, "message": "the quota is used up", "status": "RESOURCE_EXHAUSTED"})),
    "error-bare-done": ended(GOOD, event({"code": 500, "message": "the model fell over"}), DONE),
    "error-object": ended(
        event({"object": "error", "message": "the prompt is too long", "type": "BadRequestError", "code": 400}), DONE
    ),
    "error-detail": ended(GOOD, event({"detail": "the worker was restarted"}), DONE),
    "error-list": ended(GOOD, event([{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}])),
    "error-errors": ended(GOOD, event({"errors": [{"code": 3040, "message": "no capacity"}], "success": False}), DONE),
    "error-text": ended(GOOD, event({"error": "the model fell over"}), DONE),
    "error-in-choice": ended(
        GOOD, _choice({"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "provider gone"}}), DONE
    ),
    "error-json": Reply(
        (b'{"error":{"message":"the quota is used up","code":"quota"}}',), content_type="application/json"
    ),
    "error-unknown": ended(GOOD, event({"ErrorMsg": {"Msg": "not enough quota", "Code": 4001}}), DONE),
    "error-named": ended(GOOD, event({"throttlingException": {"message": "too many tokens"}}), DONE),
    "error-header": ended(GOOD, event({"header": {"code": 10013, "message": "not allowed", "sid": "x"}}), DONE),
    "error-code-next-to-choices": ended(
        GOOD,
        event({"code": 10014, "message": "not allowed", "choices": [{"index": 0, "delta": {"content": ""}}]}),
        DONE,
    ),
    "error-event-null": ended(GOOD, event("null", "error"), DONE),
    "error-null": done(event({"error": None, "choices": [{"index": 0, "delta": {"content": "Good "}}]}), MORNING),
    "error-empty": done(event({"error": {}, "choices": [{"index": 0, "delta": {"content": "Good "}}]}), MORNING),
    "status-object-fine": done(
        event({"choices": [{"index": 0, "delta": {"content": "Good "}}], "base_resp": {"status_code": 0}}), MORNING
    ),
    "code-fine": done(
        event({"code": 0, "message": "Success", "choices": [{"index": 0, "delta": {"content": "Good "}}]}), MORNING
    ),
    # Error responses in forms other than OpenAI's.
    "options-422-list": _rejecting_options(422, {"detail": _FORBIDDEN_EXTRA}),
    "options-400-list": _rejecting_options(400, {"detail": _FORBIDDEN_EXTRA}),
    "options-422-nested": _rejecting_options(422, {"object": "error", "message": {"detail": _FORBIDDEN_EXTRA}}),
    "options-422-message": _rejecting_options(422, {"error": {"message": "unknown field stream_options"}}),
    "list-400": refusal(400, [{"error": {"code": 400, "message": "the context is too long"}}]),
    "list-429": refusal(429, [{"error": {"code": 429, "message": "the quota is used up"}}]),
    "region-403": refusal(403, {"error": {"code": 403, "message": "not available in your region"}}),
    "fields-422": refusal(422, {"detail": [{"loc": ["body", "top_p"], "msg": "must be below 1"}]}),
    "text-400": Reply((b"the prompt is too long",), status=400, content_type="text/plain"),
    # Keep-alives, byte order marks, other line ends, other content types.
    "data-empty": done(GOOD, b"data:\n\n", b"data: \n\n", MORNING),
    "data-empty-first": done(b"data:\n\n", *TEXT),
    "done-not-ended": ended(*TEXT, b"data: [DONE]"),
    "stop-not-ended": ended(*TEXT, STOP.rstrip()),
    "done-with-stop": ended(*TEXT, STOP.removesuffix(b"\n") + DONE),
    "word-ping": done(GOOD, event("ping"), event('{"code":0,"message":"ok"}'), event("[]"), MORNING),
    "bom-second": done(GOOD, BOM + MORNING),
    "data-null": done(GOOD, event("null"), MORNING),
    "ping": done(GOOD, event({"type": "ping"}, "ping"), MORNING),
    "bom": done(BOM + GOOD, MORNING),
    "bom-split": done(BOM[:1], BOM[1:] + GOOD, MORNING),
    "bom-comment": done(BOM + b": hello\n\n", *TEXT),
    "bom-within": done(GOOD, b"data: " + BOM + MORNING.removeprefix(b"data: ")),
    "cr-only": Reply(tuple(part.replace(b"\n", b"\r") for part in (*TEXT, STOP, DONE))),
    "type-plain": Reply((*TEXT, STOP, DONE), content_type="text/plain; charset=utf-8"),
    "type-ndjson": Reply((*TEXT, STOP, DONE), content_type="application/x-ndjson"),
    "type-none": Reply((b"nothing of the kind",), content_type="application/octet-stream"),
    # Replies in one piece.
    "message": ended(_choice({"index": 0, "message": _WHOLE, "finish_reason": "stop"}), DONE),
    "message-null-delta": ended(_choice({"index": 0, "delta": None, "message": _WHOLE, "finish_reason": "stop"}), DONE),
    "message-at-the-end": ended(
        *TEXT, _choice({"index": 0, "delta": {}, "message": _WHOLE, "finish_reason": "stop"}, usage=USAGE), DONE
    ),
    "message-null-each": ended(
        _choice({"index": 0, "delta": {"content": "Good "}, "message": None}),
        _choice({"index": 0, "delta": {"content": "morning"}, "message": None}),
        _choice({"index": 0, "delta": None, "message": _WHOLE, "finish_reason": "stop"}),
        DONE,
    ),
    "message-with-more": ended(
        GOOD, _choice({"index": 0, "message": {**_WHOLE, "refusal": None}, "finish_reason": "stop"}), DONE
    ),
    "message-json-cut": Reply((json.dumps(_JSON).encode(),), "cut", content_type="application/json"),
    "message-json-held": Reply((json.dumps(_JSON).encode(),), "hold", content_type="application/json"),
    "message-json-half": Reply((json.dumps(_JSON).encode()[:30],), "cut", content_type="application/json"),
    "error-json-cut": Reply((b'{"error":{"message":"used up"}}',), "cut", content_type="application/json"),
    "text": done(_choice({"index": 0, "text": "Good "}), _choice({"index": 0, "delta": "morning"})),
    "message-json": Reply(
        (json.dumps({"choices": [{"index": 0, "message": _WHOLE, "finish_reason": "stop"}], "usage": USAGE}).encode(),),
        content_type="application/json",
    ),
    # Usage, and chunks that are large or deeply nested.
    "usage-between": ended(chunk("stop", content="Good "), COUNTED, chunk("stop", content="morning"), COUNTED, DONE),
    "usage-alone": ended(COUNTED, DONE),
    "usage-alone-cut": ended(COUNTED, end="cut"),
    "usage-in-the-choice": ended(
        *TEXT, _choice({"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}), DONE
    ),
    "usage-choices-null": Reply((*TEXT, STOP, event({"choices": None, "usage": USAGE}), DONE)),
    "usage-no-choices": Reply((*TEXT, STOP, event({"usage": USAGE}), DONE)),
    "usage-huge": Reply((*TEXT, STOP, event({"choices": [], "usage": {**USAGE, "note": "x" * 900_000}}), DONE)),
    "deep": Reply((GOOD, chunk(content="a", p=json.loads("[" * 500 + "]" * 500)), STOP, DONE)),
    "digits": Reply((GOOD, event('{"choices":[{"index":0,"delta":{"content":"a","p":' + "9" * 5000 + "}}]}"), DONE)),
    "image": done(
        chunk(content="", images=[{"type": "image_url", "index": 0, "image_url": {"url": "QUJD" * 524_288}}])
    ),
    "audio": Reply((*(chunk(audio={"id": "audio_1", "data": "QUJD"}) for _ in range(4)), 1.5, STOP, DONE)),
    # Headers.
    "cookies": Reply(_STREAM.parts, headers={"Set-Cookie": "session=of-the-first-caller; Path=/; HttpOnly"}),
    "header-16k": Reply(_STREAM.parts, headers={"X-Trace": "t" * 16_384}),
}

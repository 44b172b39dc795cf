"""Every fault of the simulated upstream, over real sockets: each has exactly its described effect."""

import asyncio
import json
import re
import time
from dataclasses import dataclass

import httpx2
import openai
import pytest

from tests.acceptance.upstream.sim_process import ask, body, call_of, calls, post, socket_to
from worker.simulator.text import pieces, tool_calls

CUT = "".join(pieces(7, 60)[:5])
WHOLE = "".join(pieces(7, 60))


# --- faults of a stream


@dataclass(frozen=True, slots=True)
class Expected:
    """The result for a client: by default the first five pieces."""

    text: str = CUT
    finish: str | None = None
    done: bool = False
    broken: bool = False


INTACT = Expected(WHOLE, "stop", done=True)
ENDINGS = {
    "truncate": Expected(),
    "no-blank-line": Expected(),
    "no-done": Expected(WHOLE, "stop"),
    "done-only": Expected(WHOLE, done=True),
    "empty": Expected("", done=True),
    "error-frame": Expected(done=True),
    "rst": Expected(broken=True),
    "cut": Expected(broken=True),
    "nan": INTACT,
    "huge-line": INTACT,
    "raw-newline": INTACT,
    "retry-field": INTACT,
    "event-field": INTACT,
    "null-content": INTACT,
    "split": INTACT,
    "trickle": INTACT,
    "gzip": INTACT,
}


@pytest.mark.parametrize("fault", ENDINGS)
async def test_a_fault_has_its_expected_result(url: str, fault: str) -> None:
    expected = ENDINGS[fault]
    answer = await ask(url, f"label=end-{fault}", f"sim-{fault}")
    assert (answer.text(), answer.finish, answer.done) == (expected.text, expected.finish, expected.done)
    assert (answer.error is not None) == expected.broken
    call = await call_of(url, f"end-{fault}")
    odd = expected == INTACT and fault not in ("nan", "huge-line")
    assert call["outcome"] == ("completed" if odd else f"fault:{fault}")
    assert call["chunks_sent"] == {CUT: 5, WHOLE: 60, "": 0}[expected.text] + (fault == "no-blank-line")


@pytest.mark.parametrize(
    ("fault", "traces"),
    [
        ("error-frame", rb'data: \{"error":\{.*"code":"sim_error"\}\}\n\ndata: \[DONE\]\n\n$'),
        ("no-blank-line", rb"\}\n$"),
        ("nan", rb'data: \{"score":NaN,'),
        ("huge-line", rb"x{2097152}"),
        ("raw-newline", rb'data: \{\ndata: "id".*\ndata: \}\n\n'),
        ("retry-field", rb"\n\nretry: 1000\n\nid: 6\n\nid: 7\ndata: .*\n\n: keep-alive\n\nid: 8\ndata: "),
        ("event-field", rb"^event: chunk\ndata: "),
        ("null-content", rb'"content":null'),
    ],
)
async def test_a_fault_is_visible_in_the_sent_bytes(url: str, fault: str, traces: bytes) -> None:
    assert re.search(traces, (await ask(url, model=f"sim-{fault}")).body)


def why_unreadable(data: bytes) -> type[ValueError] | None:
    try:
        json.loads(data.decode())
    except ValueError as error:
        return type(error)
    return None


@pytest.mark.parametrize("fault", ["bad-json", "bad-utf8", "bad-utf8-content"])
async def test_one_frame_is_bad_and_the_stream_continues(url: str, fault: str) -> None:
    answer = await ask(url, "unicode=1", f"sim-{fault}")
    frames = answer.body.split(b"\n\n")
    errors = [why_unreadable(frame.removeprefix(b"data: ")) for frame in frames[:-2]]
    wanted = json.JSONDecodeError if fault == "bad-json" else UnicodeDecodeError
    assert errors == [None] * 6 + [wanted] + [None] * 55  # after the role chunk and five chunks of content
    assert answer.done
    in_content = re.search(rb'"content":"[^"]*\xc3\x28', frames[6])
    assert bool(in_content) == (fault == "bad-utf8-content")


async def test_at_sets_the_position_and_times_the_count(url: str) -> None:
    texts = [(await ask(url, "fault=truncate at=12 times=2 label=twice")).text() for _ in range(3)]
    cut = "".join(pieces(7, 60)[:12])
    assert texts == [cut, cut, WHOLE]
    assert (await ask(url, "fault=truncate at=0")).text() == ""
    assert (await ask(url, "fault=truncate at=999")).text() == WHOLE
    assert [call["outcome"] for call in await calls(url, "twice")] == ["fault:truncate", "fault:truncate", "completed"]


async def test_a_fault_can_occur_between_pieces_of_a_tool_call(url: str) -> None:
    [(_, _, arguments)] = (await ask(url, "tools=1 fault=truncate at=3")).tool_calls
    assert arguments == "".join(tool_calls(7, 1)[0].pieces[:2])


@pytest.mark.parametrize(("fault", "reset"), [("rst", True), ("cut", False)])
async def test_a_broken_connection_ends_inside_a_frame(url: str, fault: str, reset: bool) -> None:
    async with socket_to(url, body(f"fault={fault}")) as (reader, _):
        received = bytearray()
        try:
            while some := await reader.read(65536):
                received += some
        except ConnectionResetError:
            assert reset
        else:
            assert not reset
    size, half = re.split(rb"\r\n([0-9a-f]+)\r\n(?=data: )", received)[-2:]
    assert half.startswith(b"data: {")
    assert 0 < len(half) < int(size, 16)


async def written_pieces(url: str, directive: str) -> list[bytes]:
    """The body of a response in the pieces in which it was written, one per chunk of the encoding."""
    async with socket_to(url, body(directive)) as (reader, _):
        rest = (await reader.read()).split(b"\r\n\r\n", 1)[1]
    written: list[bytes] = []
    while rest != b"0\r\n\r\n":
        size, rest = rest.split(b"\r\n", 1)
        written.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return written


@pytest.mark.parametrize(("directive", "most"), [("fault=split split=1", 1), ("split=3", 3), ("fault=split", 7)])
async def test_split_cuts_also_within_characters_and_line_ends(url: str, directive: str, most: int) -> None:
    written = await written_pieces(url, f"{directive} unicode=1 newlines=crlf")
    assert max(map(len, written)) == most
    assert any(bit[-1:] == b"\r" for bit in written)
    assert any(0x80 <= bit[0] <= 0xBF for bit in written[:-1])


async def test_trickle_spreads_each_frame_over_its_time(url: str) -> None:
    began = time.monotonic()
    written = await written_pieces(url, "fault=trickle speed=20 length=1 shape=gabforge")
    assert {len(bit) for bit in written} == {1}
    assert time.monotonic() - began > 0.1  # a chunk and [DONE], each spread over 1/20 s


async def test_gzip_is_used_only_for_clients_that_accept_it(url: str) -> None:
    answers = [await post(url, body("fault=gzip"), {"Accept-Encoding": coding}) for coding in ("gzip", "identity")]
    assert [answer.headers.get("content-encoding") for answer in answers] == ["gzip", None]
    assert [answer.text() for answer in answers] == [WHOLE, WHOLE]


# --- silence and disconnects


@pytest.mark.parametrize(("fault", "sent"), [("stall", 5), ("comments", 5), ("silent", 0), ("mute", 0)])
async def test_silence_lasts_until_the_client_disconnects(url: str, fault: str, sent: int) -> None:
    label = f"silence-{fault}"
    async with socket_to(url, body(f"fault={fault} keepalive=0.02 label={label}")) as (reader, _):
        if fault != "mute":
            assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
        if sent:
            await reader.readuntil(json.dumps(pieces(7, 60)[4]).encode())
            await reader.readuntil(b"\n\n\r\n")
        if fault == "comments":
            assert (await reader.readuntil(b"e\n\n\r\n") + await reader.readuntil(b"e\n\n\r\n")).count(b": keep") == 2
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.15)
        call = await call_of(url, label, ended=False)
        assert (call["outcome"], call["chunks_sent"], call["ended_at"]) == (None, sent, None)
    call = await call_of(url, label)
    assert call["outcome"] == "disconnected"


@pytest.mark.parametrize("speed", [0, 100])
async def test_a_disconnect_is_detected(url: str, speed: int) -> None:
    label = f"leaves-{speed}"
    async with socket_to(url, body(f"speed={speed} length=100000000 label={label}")) as (reader, _):
        await reader.readuntil(b"data: ")
    call = await call_of(url, label)
    assert call["outcome"] == "disconnected"
    assert 0 < call["chunks_sent"] < 1_000_000


async def test_slow_headers_delay_the_status_line(url: str) -> None:
    began = time.monotonic()
    async with socket_to(url, body("fault=slow-headers delay=0.3")) as (reader, _):
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert time.monotonic() - began >= 0.3
        assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# --- responses without a stream

ERRORS = [
    ("400", openai.BadRequestError),
    ("401", openai.AuthenticationError),
    ("403", openai.PermissionDeniedError),
    ("404", openai.NotFoundError),
    ("413", openai.APIStatusError),
    ("422", openai.UnprocessableEntityError),
    ("429", openai.RateLimitError),
    ("500", openai.InternalServerError),
    ("502", openai.InternalServerError),
    ("503", openai.InternalServerError),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("status", "raised"), ERRORS)
async def test_error_statuses_raise_the_exceptions_of_the_sdk(
    url: str, status: str, raised: type[openai.APIStatusError], stream: bool
) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(raised) as error:
            await client.chat.completions.create(**(body("", f"sim-{status}") | {"stream": stream}))
    assert error.value.status_code == int(status)
    assert isinstance(error.value.body, dict)
    assert set(error.value.body) == {"message", "type", "param", "code"}


async def test_retry_after_and_times_let_the_sdk_recover(url: str) -> None:
    refused = await ask(url, "fault=429 retry_after=0.05 times=1 label=busy")
    assert (refused.status, refused.headers["retry-after"]) == (429, "0.05")
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=2) as client:
        request = body("fault=503 retry_after=0.01 times=2 label=recovers", stream=False)
        assert (await client.chat.completions.create(**request)).choices[0].message.content == WHOLE
    outcomes = [call["outcome"] for call in await calls(url, "recovers")]
    assert outcomes == ["fault:503", "fault:503", "completed"]


@pytest.mark.parametrize("directive", ["usage=reject", "fault=400-usage"])
async def test_stream_options_are_refused_by_name(url: str, directive: str) -> None:
    refused = await ask(url, directive, stream_options={"include_usage": True})
    error = json.loads(refused.body)["error"]
    assert (refused.status, error["param"]) == (400, "stream_options")
    assert "stream_options" in error["message"]
    assert (await ask(url, directive)).text() == WHOLE


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "content_type", "within"),
    [
        ("json-200", 200, "application/json", b'{"error": {'),
        ("html", 200, "text/html; charset=utf-8", b"<!DOCTYPE html>"),
        ("redirect to=http://127.0.0.1:9/v1", 307, None, b""),
    ],
)
async def test_a_response_can_be_replaced(
    url: str, fault: str, status: int, content_type: str | None, within: bytes, stream: bool
) -> None:
    answer = await ask(url, f"fault={fault}", stream=stream)
    assert (answer.status, answer.headers.get("content-type")) == (status, content_type)
    assert within in answer.body
    assert answer.headers.get("location") == ("http://127.0.0.1:9/v1" if status == 307 else None)


@pytest.mark.parametrize("fault", ["rst", "cut", "truncate", "bad-json", "bad-utf8-content", "gzip", "slow-headers"])
async def test_faults_of_a_response_without_streaming(url: str, fault: str) -> None:
    answer = await post(url, body(f"fault={fault} delay=0.01", stream=False), {"Accept-Encoding": "gzip"})
    assert (answer.error is not None) == (fault in ("rst", "cut", "truncate"))
    if fault in ("gzip", "slow-headers"):
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == WHOLE
    else:
        assert answer.body.startswith(b'{"id": "chatcmpl-')
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|invalid"):
            json.loads(answer.body.decode())


@pytest.mark.parametrize("fault", ["stall", "silent", "mute"])
async def test_silence_in_a_response_without_streaming(url: str, fault: str) -> None:
    label = f"whole-{fault}"
    async with socket_to(url, body(f"fault={fault} label={label}", stream=False)) as (reader, _):
        if fault != "mute":
            await reader.readuntil(b'{"id"' if fault == "stall" else b"\r\n\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readuntil(b"finish_reason"), 0.1)
    assert (await call_of(url, label))["outcome"] == "disconnected"


async def test_a_redirect_without_a_target_leads_to_the_next_port(url: str) -> None:
    port = httpx2.URL(url).port
    assert port
    answer = await ask(url, model="sim-redirect")
    assert answer.headers["location"] == f"http://127.0.0.1:{port + 1}/v1/chat/completions"

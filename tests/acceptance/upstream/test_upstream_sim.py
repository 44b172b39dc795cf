"""The simulated upstream as a process of its own: its responses, its styles, and the server."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from hashlib import sha256
from typing import Any

import httpx2
import openai
import pytest

from tests.acceptance.upstream.sim_process import ROOT, ask, body, call_of, calls, post, simulator, socket_to
from tests.support import wait_until
from worker.simulator.directives import MODELS
from worker.simulator.text import pieces, tool_calls

WHOLE = "".join(pieces(7, 60))


# --- plain responses


@pytest.mark.parametrize("model", ["sim", "gabforge-coder"])
async def test_a_stream_is_the_text_of_its_seed(url: str, model: str) -> None:
    answer = await ask(url, model=model)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text() == WHOLE
    assert (answer.finish, answer.done, answer.error) == ("stop", True, None)
    assert answer.chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    keys = {"id", "object", "created", "model", "system_fingerprint", "choices"}
    assert all(set(chunk) == keys and chunk["model"] == model for chunk in answer.chunks)
    assert all("logprobs" in chunk["choices"][0] for chunk in answer.chunks)


async def test_the_openai_sdk_reads_streams_and_completions_alike(url: str) -> None:
    request = body("length=80 reasoning=3 unicode=1")
    expected = "".join(pieces(7, 80, unicode=True))
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        streamed = ""
        async for chunk in await client.chat.completions.create(**request):
            streamed += chunk.choices[0].delta.content or ""
        whole = await client.chat.completions.create(**(request | {"stream": False, "n": 2}))
        models = [model.id async for model in client.models.list()]
    assert streamed == whole.choices[0].message.content == expected
    assert whole.choices[1].message.content == "".join(pieces(8, 80, unicode=True))
    assert whole.usage
    assert whole.usage.completion_tokens == 2 * 83
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert {"sim", "gabforge-coder", "sim-rst", "sim-tools"} <= set(models) == set(MODELS)


@pytest.mark.parametrize("way", ["plain", "prefix", "continue_final_message"])
async def test_a_reply_goes_on_after_the_start_that_is_given(url: str, way: str) -> None:
    request = started(f"overlap=4 label=go-{way}", WHOLE[:53], **({"prefix": True} if way == "prefix" else {}))
    if way == "continue_final_message":
        request |= {"continue_final_message": True, "add_generation_prompt": False}
    assert (await post(url, request)).text() == WHOLE[49:]
    whole = json.loads((await post(url, {**request, "stream": False})).body)
    assert whole["choices"][0]["message"]["content"] == WHOLE[49:]
    assert whole["usage"]["completion_tokens"] == 60 - len(pieces_within(49))
    assert [call["continues"] for call in await calls(url, f"go-{way}")] == [way, way]


async def test_a_start_is_refused_or_ignored(url: str) -> None:
    assert (await post(url, started("", "Well, "))).text() == WHOLE  # it would not have written that
    assert (await post(url, started("continues=restart", WHOLE[:53]))).text() == WHOLE
    assert (await post(url, started("continues=reject", WHOLE[:53]))).status == 400
    assert (await post(url, {**started("", WHOLE[:53]), "continue_final_message": True})).status == 400


def started(directive: str, start: str, **more: Any) -> dict[str, Any]:
    """A request with the start of the reply."""
    request = body(directive)
    return {**request, "messages": [*request["messages"], {"role": "assistant", "content": start, **more}]}


def pieces_within(characters: int) -> list[str]:
    """The pieces that end within the first characters of the text."""
    return [piece for n, piece in enumerate(pieces(7, 60), 1) if len("".join(pieces(7, 60)[:n])) <= characters]


async def test_every_choice_has_the_text_of_its_own_seed(url: str) -> None:
    answer = await ask(url, "length=20", n=3, stream_options={"include_usage": True})
    assert [answer.text(index) for index in range(3)] == ["".join(pieces(7 + k, 20)) for k in range(3)]
    assert answer.chunks[-1]["choices"] == []
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 60
    assert all(chunk["usage"] is None for chunk in answer.chunks[:-1])


async def test_max_tokens_limits_the_response(url: str) -> None:
    answer = await ask(url, max_tokens=9)
    assert (answer.text(), answer.finish) == ("".join(pieces(7, 9)), "length")


async def test_equal_messages_have_equal_texts_and_directives_change_nothing_else(url: str) -> None:
    requests = [
        {"model": "sim-fast", "stream": True, "messages": [{"role": "user", "content": content}]}
        for content in ("Hello", "Hello [[sim length=60]]", "Good evening")
    ]
    hello, directed, evening = [(await post(url, request)).text() for request in requests]
    assert hello == directed != evening


async def test_pace_and_delay_are_kept(url: str) -> None:
    """Never early. On a busy machine a response may be late, so the test repeats the call until one is in time."""

    async def in_time() -> bool:
        began = time.time()
        answer = await post(url, body("speed=200 length=40 delay=0.15 stamp=1"))
        stamps = [chunk["sim_ns"] / 1e9 for chunk in answer.chunks]
        delay, took = stamps[0] - began, stamps[-1] - stamps[0]
        assert delay >= 0.15
        assert took > 0.1
        assert stamps == sorted(stamps)
        return delay < 1.0 and took < 1.0

    await wait_until(in_time)


async def test_chunks_are_padded_to_the_requested_size(url: str) -> None:
    answer = await ask(url, "shape=gabforge size=200")
    sizes = {len(line) - len(b"data: ") for line in answer.body.split(b"\n") if line.startswith(b"data: {")}
    assert (sizes, answer.text()) == ({200}, WHOLE)


async def test_hundreds_of_concurrent_streams_are_complete(url: str) -> None:
    async def one(seed: int) -> bool:
        async with socket_to(url, body(f"seed={seed} length=100 shape=gabforge")) as (reader, _):
            raw = await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
            content = re.findall(rb'"content":("(?:[^"\\]|\\.)*")', raw)
            return "".join(map(json.loads, content)) == "".join(pieces(seed, 100))

    assert all(await asyncio.gather(*(one(seed) for seed in range(300))))


# --- styles


async def test_gabforge_sends_exactly_the_chunks_of_its_documentation(url: str) -> None:
    answer = await ask(url, "length=3", "sim-gabforge", stream_options={"include_usage": True})
    frames = [f'data: {{"choices":[{{"delta":{{"content":{json.dumps(p)}}},"index":0}}]}}\n\n' for p in pieces(7, 3)]
    assert answer.body.decode() == "".join(frames) + "data: [DONE]\n\n"


async def test_azure_begins_with_a_chunk_without_choices(url: str) -> None:
    answer = await ask(url, model="sim-azure")
    first = answer.chunks[0]
    assert (first["choices"], first["id"], answer.text()) == ([], "", WHOLE)
    assert "prompt_filter_results" in first
    assert any("delta" not in choice for chunk in answer.chunks for choice in chunk["choices"])


async def test_extra_has_unknown_fields_at_every_level(url: str) -> None:
    chunk = (await ask(url, model="sim-extra")).chunks[3]
    assert "provider" in chunk
    assert "confidence" in chunk["choices"][0]
    assert "trace" in chunk["choices"][0]["delta"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_comes_before_content(url: str, field: str) -> None:
    answer = await ask(url, f"reasoning_field={field}", "sim-reasoning")
    assert answer.text(field=field) == "".join(pieces(7, 12, voice="reasoning"))
    assert answer.text() == WHOLE
    thought = [field in chunk["choices"][0]["delta"] for chunk in answer.chunks[1:]]
    assert thought == sorted(thought, reverse=True)


@pytest.mark.parametrize(("model", "finish"), [("sim-tools", "tool_calls"), ("sim-tool-no-index", "stop")])
async def test_tool_calls_are_sent_in_pieces(url: str, model: str, finish: str) -> None:
    answer = await ask(url, model=model)
    assert answer.tool_calls == [(call.id, call.name, call.arguments) for call in tool_calls(7, 2)]
    assert (answer.finish, answer.done, answer.text()) == (finish, True, "")
    indexes = [p.get("index") for c in answer.chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert set(indexes) == ({0, 1} if model == "sim-tools" else {None})


async def test_a_refusal_replaces_the_content(url: str) -> None:
    answer = await ask(url, model="sim-refusal")
    assert (answer.text(field="refusal"), answer.text()) == ("".join(pieces(7, 12, voice="refusal")), "")


@pytest.mark.parametrize(("model", "finish"), [("sim-length", "length"), ("sim-filter", "content_filter")])
async def test_models_have_their_finish_reasons(url: str, model: str, finish: str) -> None:
    assert (await ask(url, model=model)).finish == finish


async def test_usage_can_be_disabled(url: str) -> None:
    answer = await ask(url, model="sim-no-usage", stream_options={"include_usage": True})
    assert (answer.done, [chunk for chunk in answer.chunks if "usage" in chunk]) == (True, [])


async def test_crlf_ends_every_line(url: str) -> None:
    answer = await ask(url, "unicode=1", model="sim-crlf")
    assert answer.body.count(b"\n") == answer.body.count(b"\r\n") == 2 * (len(answer.chunks) + 1)
    assert answer.text() == "".join(pieces(7, 60, unicode=True))


async def test_surrogate_pairs_are_split_over_two_chunks(url: str) -> None:
    answer = await ask(url, "length=70", "sim-surrogate")
    assert re.search(rb'\\ud83c"', answer.body)
    text = answer.text().encode("utf-16", "surrogatepass").decode("utf-16")
    assert text == "".join(pieces(7, 70, unicode=True))


@pytest.mark.parametrize("model", ["sim-slow", "sim-long", "sim-stamp"])
async def test_other_styles_change_only_pace_length_and_timestamps(url: str, model: str) -> None:
    answer = await ask(url, model=model)
    assert answer.text() == "".join(pieces(7, 2000 if model == "sim-long" else 60))
    assert all(("sim_ns" in chunk) == (model == "sim-stamp") for chunk in answer.chunks)


async def test_keep_alive_comments_fill_the_silence(url: str) -> None:
    answer = await ask(url, "keepalive=0.02 delay=0.3", "sim-keepalive")
    assert 1 <= answer.body.count(b": keep-alive\n\n") <= 15
    assert answer.text() == WHOLE


# --- the server


async def test_invalid_requests_are_refused_in_openais_form(url: str) -> None:
    content = [{"role": "user", "content": "Hello"}]
    wrong: list[tuple[dict[str, Any], int, str | None, str | None]] = [
        ({"model": "gpt-unknown", "messages": content}, 404, "model_not_found", "model"),
        ({"model": "sim", "messages": []}, 400, None, "messages"),
        ({"model": "sim", "messages": [{"role": "user", "content": "[[sim wings=2]]"}]}, 400, None, "messages"),
        ({"model": "sim"}, 400, None, None),
    ]
    for request, status, code, param in wrong:
        answer = await post(url, request)
        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"], error["param"]) == (status, code, param)
        assert error["message"]


async def test_a_required_key_is_required() -> None:
    with simulator("--require-key", "right") as (url, _):
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer right"}, 200),
        ):
            assert (await post(url, body("label=key"), headers)).status == status
            async with httpx2.AsyncClient() as client:
                assert (await client.get(url + "/models", headers=headers)).status_code == status
        [call] = await calls(url, "key")
        assert call["headers"]["authorization"] is True
        assert "right" not in json.dumps(call)


async def test_the_journal_lists_calls_and_can_be_cleared(url: str) -> None:
    request = body("label=journal", temperature=0.5, tools=[])
    await post(url, request, {"Accept-Encoding": "identity"})
    call = await call_of(url, "journal")
    data = httpx2.Request("POST", url, json=request).content
    assert call["body_sha256"] == sha256(data).hexdigest()
    assert call["parameters"] == ["messages", "model", "stream", "temperature", "tools"]
    assert call["headers"]["accept-encoding"] == "identity"
    assert call["headers"]["authorization"] is False
    assert (call["model"], call["seed"], call["stream"], call["chunks_sent"]) == ("sim", 7, True, 60)
    assert call["started_at"] <= call["first_byte_at"] <= call["ended_at"]
    with simulator() as (own, _):
        await ask(own, "fault=500 times=1 label=forget")
        async with httpx2.AsyncClient() as client:
            assert (await client.delete(own.removesuffix("/v1") + "/sim/calls")).status_code == 204
            assert (await client.get(own.removesuffix("/v1") + "/healthz")).json() == {"status": "ok"}
        assert await calls(own, "forget") == []
        assert (await ask(own, "fault=500 times=1 label=forget")).status == 500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_simulator_stops_immediately(number: signal.Signals) -> None:
    with simulator() as (url, process):
        busy, silent = body("length=100000000"), body("fault=mute")
        async with socket_to(url, busy) as (reader, _), socket_to(url, busy), socket_to(url, silent):
            await reader.readuntil(b"data: ")
            process.send_signal(number)
            assert await asyncio.to_thread(process.wait, 2) == 0
        assert process.stdout
        assert process.stderr
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_the_help_lists_all_directives() -> None:
    command = [sys.executable, "-m", "worker.simulator", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "no-blank-line   truncate, and the last frame lacks the blank line" in shown
    assert "--require-key KEY" in shown

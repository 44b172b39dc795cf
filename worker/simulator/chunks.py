"""The chunks of a reply, in order, each framed for SSE; and the same reply as one completion.

Start with `plan`. Each shape has a template for what differs between servers. A template is filled in once per choice,
not once per chunk, because benchmarks stream from here as fast as the process can.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import dumps
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from worker.simulator import text
from worker.simulator.directives import Ask
from worker.simulator.frames import DONE, Frame, Kind

HARMLESS = '{"hate":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}'
CHOICE = {
    "openai": '{"index":%(index)d,"delta":{%(delta)s},"logprobs":null,"finish_reason":%(finish)s}',
    "gabforge": '{"delta":{%(delta)s},"index":%(index)d}',
    "azure": '{"content_filter_results":' + HARMLESS + ',"delta":{%(delta)s},"finish_reason":%(finish)s,'
    '"index":%(index)d,"logprobs":null}',
    "extra": '{"index":%(index)d,"delta":{%(delta)s},"logprobs":null,"finish_reason":%(finish)s,'
    '"native_finish_reason":%(finish)s,"confidence":0.5}',
}
CHUNK = {
    "openai": '{"id":"%(id)s","object":"chat.completion.chunk","created":%(created)d,"model":"%(model)s",'
    '"system_fingerprint":"fp_sim","choices":[',
    "gabforge": '{"choices":[',
    "azure": '{"id":"%(id)s","object":"chat.completion.chunk","created":%(created)d,"model":"%(model)s",'
    '"system_fingerprint":null,"choices":[',
    "extra": '{"id":"%(id)s","object":"chat.completion.chunk","created":%(created)d,"model":"%(model)s",'
    '"provider":"simulated","timings":{"predicted_ms":1.5},"choices":[',
}
AZURE_PREAMBLE = (
    '{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":'
    '[{"prompt_index":0,"content_filter_results":' + HARMLESS + "}]"
)
AZURE_FILTER_ONLY = (
    '{"content_filter_offsets":{"check_offset":0,"start_offset":0,"end_offset":40},"content_filter_results":'
    + HARMLESS
    + ',"finish_reason":null,"index":%(index)d,"logprobs":null}'
)


def plan(ask: Ask, number: int) -> Iterator[Frame]:
    """Generate the frames of the reply to call `number`, lazily."""
    pen = Pen.of(ask, number)
    shape, choices = ask.directive.shape, range(ask.n)
    if shape == "azure":
        yield Frame(Kind.PREAMBLE, pen.seal(AZURE_PREAMBLE))
    if shape != "gabforge":
        for index in choices:
            yield pen.frame(Kind.PREAMBLE, index, '"role":"assistant","content":"","refusal":null')
    yield from tokens(ask, pen)
    if shape == "azure":
        for index in choices:
            yield Frame(Kind.PREAMBLE, pen.seal(pen.chunk(AZURE_FILTER_ONLY % {"index": index})))
    if shape != "gabforge":
        for index in choices:
            yield pen.frame(Kind.FINISH, index, "", dumps(ask.finish))
        if ask.include_usage:
            yield Frame(Kind.USAGE, pen.seal(pen.chunk("", dumps(usage(ask), separators=(",", ":")))))
    yield DONE


def tokens(ask: Ask, pen: "Pen") -> Iterator[Frame]:
    """Generate the token chunks of the reply, the choices alternating."""
    how = ask.directive
    quote = encode_basestring_ascii if how.split_surrogate else encode_basestring
    yield from pen.rows(Kind.REASONING, how.reasoning_field, _said(ask, "reasoning", how.reasoning))
    yield from pen.rows(Kind.CONTENT, "content", _said(ask, "content", ask.length), quote)
    yield from pen.rows(Kind.REFUSAL, "refusal", _said(ask, "refusal", how.refusal))
    for index in range(ask.n):
        for delta in tool_deltas(ask, index):
            yield pen.frame(Kind.TOOL, index, delta)


def _said(ask: Ask, voice: text.Voice, length: int) -> list[Iterator[str]]:
    how = ask.directive
    unicode = how.unicode or how.split_surrogate
    said = [text.iter_pieces(ask.seed + k, length, unicode=unicode, voice=voice) for k in range(ask.n)]
    if how.split_surrogate and voice == "content":
        return [text.split_surrogates(pieces) for pieces in said]
    return said


def tool_deltas(ask: Ask, index: int) -> Iterator[str]:
    """Generate the members of each delta of a choice's tool calls: first id and name, then pieces of the arguments."""
    indexless = ask.directive.fault == "tool-no-index"
    for position, call in enumerate(text.tool_calls(ask.seed + index, ask.directive.tools)):
        place = "" if indexless else f'"index":{position},'
        yield (
            f'"tool_calls":[{{{place}"id":"{call.id}","type":"function",'
            f'"function":{{"name":"{call.name}","arguments":""}}}}]'
        )
        for piece in call.pieces:
            yield f'"tool_calls":[{{{place}"function":{{"arguments":{encode_basestring(piece)}}}}}]'
        if indexless:
            yield '"extra_content":{"google":{"thought_signature":"c2lt"}}'


@dataclass(frozen=True, slots=True)
class Pen:
    """Writes the chunks of one reply in its shape."""

    opening: str
    """Beginning of a chunk, including `"choices":[`."""
    choice: str
    closing: str
    more_delta: str
    size: int
    stamp: bool

    @staticmethod
    def of(ask: Ask, number: int) -> "Pen":
        how = ask.directive
        identity = {"id": identifier(ask, number), "created": int(time.time()), "model": ask.model}
        return Pen(
            opening=CHUNK[how.shape] % identity,
            choice=CHOICE[how.shape],
            closing=',"usage":null' if ask.include_usage and how.shape != "gabforge" else "",
            more_delta=',"trace":{"hop":1}' if how.shape == "extra" else "",
            size=how.size,
            stamp=how.stamp,
        )

    def frame(self, kind: Kind, index: int, delta: str, finish: str = "null") -> Frame:
        return Frame(kind, self.seal(self.chunk(self._choice(index, delta, finish))))

    def rows(
        self, kind: Kind, name: str, said: list[Iterator[str]], quote: Callable[[str], str] = encode_basestring
    ) -> Iterator[Frame]:
        """Generate one frame per piece, alternating between the choices. The hot loop."""
        blank = [self.chunk(self._choice(index, f'"{name}":\0')).split("\0") for index in range(len(said))]
        for row in zip(*said, strict=True):
            for (before, after), piece in zip(blank, row, strict=True):
                yield Frame(kind, self.seal(before + quote(piece) + after))

    def chunk(self, choices: str, usage: str = "") -> str:
        """Return a chunk without its last brace."""
        return f"{self.opening}{choices}]" + (f',"usage":{usage}' if usage else self.closing)

    def seal(self, chunk: str) -> bytes:
        """Return the frame of a chunk without its last brace: add the time stamp, the padding and the brace."""
        if self.stamp:
            chunk += f',"sim_ns":{time.time_ns()}'
        data = chunk.encode()
        # OpenAI's own chunks carry `obfuscation` to hide their lengths; here it pads them to a chosen length.
        missing = self.size - len(data) - 1 - len(b',"obfuscation":""')
        if missing >= 0 and self.size:
            data += b',"obfuscation":"' + b"x" * missing + b'"'
        return b"data: " + data + b"}\n\n"

    def _choice(self, index: int, delta: str, finish: str = "null") -> str:
        members = delta + self.more_delta if delta else self.more_delta.removeprefix(",")
        return self.choice % {"index": index, "delta": members, "finish": finish}


def identifier(ask: Ask, number: int) -> str:
    return f"chatcmpl-{ask.seed % 0xFFFFFF:06x}{number:06d}"


def usage(ask: Ask) -> dict[str, Any]:
    """Return the usage: each token chunk of each choice counts as one token."""
    reasoned = ask.n * ask.directive.reasoning
    tools = sum(sum(1 for _ in tool_deltas(ask, index)) for index in range(ask.n))
    completion = reasoned + tools + ask.n * (ask.length + ask.directive.refusal)
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": ask.prompt_tokens + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoned},
    }


def completion(ask: Ask, number: int) -> dict[str, Any]:
    """Return the reply to a request with `stream: false`: the same text as one completion."""
    body: dict[str, Any] = {
        "id": identifier(ask, number),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ask.model,
        "system_fingerprint": "fp_sim",
        "choices": [_whole_choice(ask, index) for index in range(ask.n)],
    }
    return body if ask.directive.usage == "never" else body | {"usage": usage(ask)}


def _whole_choice(ask: Ask, index: int) -> dict[str, Any]:
    how, seed = ask.directive, ask.seed + index
    unicode = how.unicode or how.split_surrogate

    def said(voice: text.Voice, length: int) -> str | None:
        return "".join(text.iter_pieces(seed, length, unicode=unicode, voice=voice)) if length else None

    message: dict[str, Any] = {
        "role": "assistant",
        "content": said("content", ask.length),
        "refusal": said("refusal", how.refusal),
    }
    if how.reasoning:
        message[how.reasoning_field] = said("reasoning", how.reasoning)
    if how.tools:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in text.tool_calls(seed, how.tools)
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": ask.finish}

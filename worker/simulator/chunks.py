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
from worker.simulator.directives import ChatRequest
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


def plan(chat: ChatRequest, number: int) -> Iterator[Frame]:
    """Generate the frames of the reply to call `number`, lazily."""
    writer = ChunkWriter.of(chat, number)
    shape, choices = chat.directive.shape, range(chat.n)
    if shape == "azure":
        yield Frame(Kind.PREAMBLE, writer.finish_frame(AZURE_PREAMBLE))
    if shape != "gabforge":
        for index in choices:
            yield writer.frame(Kind.PREAMBLE, index, '"role":"assistant","content":"","refusal":null')
    yield from tokens(chat, writer)
    if shape == "azure":
        for index in choices:
            yield Frame(Kind.PREAMBLE, writer.finish_frame(writer.chunk(AZURE_FILTER_ONLY % {"index": index})))
    if shape != "gabforge":
        for index in choices:
            yield writer.frame(Kind.FINISH, index, "", dumps(chat.finish))
        if chat.include_usage:
            yield Frame(Kind.USAGE, writer.finish_frame(writer.chunk("", dumps(usage(chat), separators=(",", ":")))))
    yield DONE


def tokens(chat: ChatRequest, writer: "ChunkWriter") -> Iterator[Frame]:
    """Generate the token chunks of the reply, the choices alternating."""
    options = chat.directive
    quote = encode_basestring_ascii if options.split_surrogate else encode_basestring
    yield from writer.rows(Kind.REASONING, options.reasoning_field, _texts(chat, "reasoning", options.reasoning))
    yield from writer.rows(Kind.CONTENT, "content", _texts(chat, "content", chat.length), quote)
    yield from writer.rows(Kind.REFUSAL, "refusal", _texts(chat, "refusal", options.refusal))
    for index in range(chat.n):
        for delta in tool_deltas(chat, index):
            yield writer.frame(Kind.TOOL, index, delta)


def _texts(chat: ChatRequest, voice: text.Voice, length: int) -> list[Iterator[str]]:
    texts = [text.iter_pieces(chat.seed + k, length, unicode=chat.unicode, voice=voice) for k in range(chat.n)]
    if voice != "content":
        return texts
    texts = [text.after(pieces, chat.given.skipped) for pieces in texts]
    return [text.split_surrogates(pieces) for pieces in texts] if chat.directive.split_surrogate else texts


def tool_deltas(chat: ChatRequest, index: int) -> Iterator[str]:
    """Generate the members of each delta of a choice's tool calls: first id and name, then pieces of the arguments."""
    indexless = chat.directive.fault == "tool-no-index"
    for position, call in enumerate(text.tool_calls(chat.seed + index, chat.directive.tools)):
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
class ChunkWriter:
    """Writes the chunks of one reply in its shape."""

    opening: str
    """Beginning of a chunk, including `"choices":[`."""
    choice: str
    closing: str
    more_delta: str
    size: int
    stamp: bool

    @staticmethod
    def of(chat: ChatRequest, number: int) -> "ChunkWriter":
        options = chat.directive
        identity = {"id": identifier(chat, number), "created": int(time.time()), "model": chat.model}
        return ChunkWriter(
            opening=CHUNK[options.shape] % identity,
            choice=CHOICE[options.shape],
            closing=',"usage":null' if chat.include_usage and options.shape != "gabforge" else "",
            more_delta=',"trace":{"hop":1}' if options.shape == "extra" else "",
            size=options.size,
            stamp=options.stamp,
        )

    def frame(self, kind: Kind, index: int, delta: str, finish: str = "null") -> Frame:
        return Frame(kind, self.finish_frame(self.chunk(self._choice(index, delta, finish))))

    def rows(
        self, kind: Kind, name: str, texts: list[Iterator[str]], quote: Callable[[str], str] = encode_basestring
    ) -> Iterator[Frame]:
        """Generate one frame per piece, alternating between the choices. The hot loop."""
        blank = [self.chunk(self._choice(index, f'"{name}":\0')).split("\0") for index in range(len(texts))]
        for row in zip(*texts, strict=True):
            for (before, after), piece in zip(blank, row, strict=True):
                yield Frame(kind, self.finish_frame(before + quote(piece) + after))

    def chunk(self, choices: str, usage: str = "") -> str:
        """Return a chunk without its last brace."""
        return f"{self.opening}{choices}]" + (f',"usage":{usage}' if usage else self.closing)

    def finish_frame(self, chunk: str) -> bytes:
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


def identifier(chat: ChatRequest, number: int) -> str:
    return f"chatcmpl-{chat.seed % 0xFFFFFF:06x}{number:06d}"


def usage(chat: ChatRequest) -> dict[str, Any]:
    """Return the usage: each token chunk of each choice counts as one token."""
    reasoned = chat.n * chat.directive.reasoning
    tools = sum(sum(1 for _ in tool_deltas(chat, index)) for index in range(chat.n))
    content = chat.length - chat.given.pieces
    completion = reasoned + tools + chat.n * (content + chat.directive.refusal)
    return {
        "prompt_tokens": chat.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": chat.prompt_tokens + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoned},
    }


def completion(chat: ChatRequest, number: int) -> dict[str, Any]:
    """Return the reply to a request with `stream: false`: the same text as one completion."""
    body: dict[str, Any] = {
        "id": identifier(chat, number),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": chat.model,
        "system_fingerprint": "fp_sim",
        "choices": [_whole_choice(chat, index) for index in range(chat.n)],
    }
    return body if chat.directive.usage == "never" else body | {"usage": usage(chat)}


def _whole_choice(chat: ChatRequest, index: int) -> dict[str, Any]:
    options, seed = chat.directive, chat.seed + index

    def text_of(voice: text.Voice, length: int) -> str | None:
        return "".join(text.iter_pieces(seed, length, unicode=chat.unicode, voice=voice)) if length else None

    message: dict[str, Any] = {
        "role": "assistant",
        "content": (text_of("content", chat.length) or "")[chat.given.skipped :] or None,
        "refusal": text_of("refusal", options.refusal),
    }
    if options.reasoning:
        message[options.reasoning_field] = text_of("reasoning", options.reasoning)
    if options.tools:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in text.tool_calls(seed, options.tools)
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": chat.finish}

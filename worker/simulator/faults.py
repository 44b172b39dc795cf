"""The table of faults.

A fault of the stream is a function from frames to frames, applied after `at` token chunks. A refusal is an error
response in OpenAI's form. The other faults concern headers or bytes, and are applied in `answers` and `stream`.
"""

import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from worker.simulator.frames import ACTIONS, DONE, ENDING, TOKENS, Frame, Kind


@dataclass(frozen=True, slots=True)
class FaultPosition:
    """Position of a fault: after `at` frames of the kinds in `unit`. `bytes`: size of a huge line."""

    at: int
    unit: frozenset[Kind]
    bytes: int


Transform = Callable[[Iterator[Frame], FaultPosition], Iterator[Frame]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error response in OpenAI's form."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its effect, and whether it spoils the reply (otherwise the reply is unusual but valid)."""

    transform: Transform | None = None
    refusal: Refusal | None = None
    spoils: bool = True


def head(frames: Iterator[Frame], position: FaultPosition) -> Generator[Frame, None, Frame]:
    """Pass on the frames before the fault; return the frame that it applies to.

    In a stream with fewer token chunks than `at`, this is the first frame of its end.
    """
    sent = 0
    for frame in frames:
        if frame.kind in ENDING or (frame.kind in position.unit and sent >= position.at):
            return frame
        sent += frame.kind in position.unit
        yield frame
    return DONE


def truncate(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
    yield from head(frames, position)


def no_blank_line(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
    target = yield from head(frames, position)
    yield Frame(target.kind, target.data.removesuffix(b"\n"))


def error_frame(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
    yield from head(frames, position)
    yield Frame(
        Kind.FINISH,
        b'data: {"error":{"message":"The server had an error while processing your request.",'
        b'"type":"server_error","param":null,"code":"sim_error"}}\n\n',
    )
    yield DONE


def end_with(kind: Kind) -> Transform:
    """Return a fault that replaces a frame by an action on the connection, which ends the stream."""
    assert kind in ACTIONS  # noqa: S101  (a mistake in the table below)

    def transform(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
        target = yield from head(frames, position)
        yield Frame(kind, target.data)

    return transform


def without(*kinds: Kind) -> Transform:
    """Return a fault that removes the frames of these kinds."""

    def transform(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
        return (frame for frame in frames if frame.kind not in kinds)

    return transform


def edit_frame(edit: Callable[[bytes, FaultPosition], bytes]) -> Transform:
    """Return a fault that edits the bytes of one frame."""

    def transform(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
        target = yield from head(frames, position)
        yield Frame(target.kind, edit(target.data, position))
        yield from frames

    return transform


def _with_field(field: bytes) -> Transform:
    return edit_frame(lambda data, _: data.replace(b"data: {", b"data: {" + field + b",", 1))


def _huge(data: bytes, position: FaultPosition) -> bytes:
    return data.replace(b"data: {", b'data: {"padding":"' + b"x" * position.bytes + b'",', 1)


def _over_lines(data: bytes, _: FaultPosition) -> bytes:
    return data.replace(b"data: {", b"data: {\ndata: ", 1).replace(b"}\n\n", b"\ndata: }\n\n")


def retry_field(frames: Iterator[Frame], position: FaultPosition) -> Iterator[Frame]:
    target = yield from head(frames, position)
    yield Frame(Kind.PREAMBLE, b"retry: 1000\n\n")
    yield Frame(Kind.PREAMBLE, b"id: 6\n\n")
    yield Frame(target.kind, b"id: 7\n" + target.data)
    yield Frame(Kind.PREAMBLE, b": keep-alive\n\n")  # after an id, this makes openai-python fail
    for number, frame in enumerate(frames, start=8):
        yield Frame(frame.kind, b"id: %d\n" % number + frame.data)


def event_field(frames: Iterator[Frame], _: FaultPosition) -> Iterator[Frame]:
    for frame in frames:
        yield Frame(frame.kind, b"event: chunk\n" + frame.data)


_CONTENT = re.compile(rb'"content":"(?:[^"\\]|\\.)*"')


def null_content(frames: Iterator[Frame], _: FaultPosition) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        yield frame
        if frame.kind is Kind.CONTENT and number % 3 == 0:
            yield Frame(Kind.PREAMBLE, _CONTENT.sub(b'"content":null', frame.data, count=1))


FAULTS: dict[str, Fault] = {
    # The stream ends early, or never.
    "truncate": Fault(truncate),
    "no-done": Fault(without(Kind.DONE)),
    "done-only": Fault(without(Kind.FINISH)),
    "no-blank-line": Fault(no_blank_line),
    "empty": Fault(without(Kind.PREAMBLE, *TOKENS, Kind.FINISH, Kind.USAGE)),
    "error-frame": Fault(error_frame),
    "rst": Fault(end_with(Kind.RESET)),
    "cut": Fault(end_with(Kind.HANGUP)),
    "stall": Fault(end_with(Kind.STALL)),
    "comments": Fault(end_with(Kind.COMMENTS)),
    # One frame is invalid; the stream continues.
    "bad-json": Fault(edit_frame(lambda data, _: data.removesuffix(b"}\n\n") + b"\n\n")),
    "bad-utf8": Fault(_with_field(b'"note":"\xff\xfe"')),
    "bad-utf8-content": Fault(edit_frame(lambda data, _: data.replace(b'"content":"', b'"content":"\xc3\x28', 1))),
    "nan": Fault(_with_field(b'"score":NaN')),
    "huge-line": Fault(edit_frame(_huge)),
    # Unusual but valid.
    "raw-newline": Fault(edit_frame(_over_lines), spoils=False),
    "retry-field": Fault(retry_field, spoils=False),
    "event-field": Fault(event_field, spoils=False),
    "null-content": Fault(null_content, spoils=False),
    "tool-no-index": Fault(spoils=False),
    "split": Fault(spoils=False),
    "trickle": Fault(spoils=False),
    "gzip": Fault(spoils=False),
    "slow-headers": Fault(spoils=False),
    # No stream.
    "mute": Fault(),
    "silent": Fault(),
    "json-200": Fault(),
    "html": Fault(),
    "huge-error": Fault(),
    "redirect": Fault(),
    "400-usage": Fault(
        refusal=Refusal(
            400,
            "invalid_request_error",
            "unknown_parameter",
            "Unrecognized request argument supplied: stream_options",
            "stream_options",
        )
    ),
    "400": Fault(
        refusal=Refusal(
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "This model's maximum context length is 8192 tokens; your messages resulted in more.",
            "messages",
        )
    ),
    "401": Fault(refusal=Refusal(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.")),
    "403": Fault(refusal=Refusal(403, "invalid_request_error", "permission_denied", "This key may not use the model.")),
    "404": Fault(
        refusal=Refusal(404, "invalid_request_error", "model_not_found", "The model does not exist.", "model")
    ),
    "413": Fault(refusal=Refusal(413, "invalid_request_error", "request_too_large", "The request is too large.")),
    "422": Fault(
        refusal=Refusal(422, "invalid_request_error", "unprocessable", "The tools could not be processed.", "tools")
    ),
    "429": Fault(refusal=Refusal(429, "requests", "rate_limit_exceeded", "Rate limit reached for requests.")),
    "500": Fault(refusal=Refusal(500, "server_error", None, "The server had an error.")),
    "502": Fault(refusal=Refusal(502, "server_error", "bad_gateway", "The upstream's upstream failed.")),
    "503": Fault(refusal=Refusal(503, "server_error", "overloaded", "The engine is currently overloaded.")),
}

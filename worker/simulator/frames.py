"""The unit the simulator streams: one SSE frame, or one thing done to the connection instead."""

from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What a frame is for."""

    PREAMBLE = auto()  # the role chunk, Azure's filter results, comments: takes no time
    REASONING = auto()
    CONTENT = auto()
    REFUSAL = auto()
    TOOL = auto()
    FINISH = auto()
    USAGE = auto()
    DONE = auto()
    # The rest is done to the connection, after everything before it has been written.
    STALL = auto()  # nothing more, for ever
    COMMENTS = auto()  # nothing but keep-alive comments, for ever
    HANGUP = auto()  # half of `data`, then FIN
    RESET = auto()  # half of `data`, then RST


TOKENS = frozenset({Kind.REASONING, Kind.CONTENT, Kind.REFUSAL, Kind.TOOL})
ENDING = frozenset({Kind.FINISH, Kind.USAGE, Kind.DONE})
DEEDS = frozenset({Kind.STALL, Kind.COMMENTS, Kind.HANGUP, Kind.RESET})


class Frame(NamedTuple):
    """`data` is the frame as it goes on the wire, with LF line ends and its blank line."""

    kind: Kind
    data: bytes = b""


DONE = Frame(Kind.DONE, b"data: [DONE]\n\n")
KEEP_ALIVE = b": keep-alive\n\n"

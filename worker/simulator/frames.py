"""`Frame`, the unit of a simulated stream: one SSE frame, or one action on the connection."""

from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """The purpose of a frame."""

    PREAMBLE = auto()  # the role chunk, Azure's filter results, comments: takes no time
    REASONING = auto()
    CONTENT = auto()
    REFUSAL = auto()
    TOOL = auto()
    FINISH = auto()
    USAGE = auto()
    DONE = auto()
    # The rest are actions on the connection, after the preceding frames have been written.
    STALL = auto()  # nothing more; the connection stays open
    COMMENTS = auto()  # only keep-alive comments, without end
    HANGUP = auto()  # half of `data`, then FIN
    RESET = auto()  # half of `data`, then RST


TOKENS = frozenset({Kind.REASONING, Kind.CONTENT, Kind.REFUSAL, Kind.TOOL})
ENDING = frozenset({Kind.FINISH, Kind.USAGE, Kind.DONE})
ACTIONS = frozenset({Kind.STALL, Kind.COMMENTS, Kind.HANGUP, Kind.RESET})


class Frame(NamedTuple):
    """`data`: the frame on the wire, with LF line ends and its blank line."""

    kind: Kind
    data: bytes = b""


DONE = Frame(Kind.DONE, b"data: [DONE]\n\n")
KEEP_ALIVE = b": keep-alive\n\n"

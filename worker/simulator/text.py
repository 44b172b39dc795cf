"""The text of the simulated model: a pure function of (seed, length, unicode), standard library only.

A test that knows the seed can compute the text:

    expected = "".join(pieces(seed=7, length=60))
    cut_after_five = "".join(pieces(seed=7, length=60)[:5])

Choice `k` of a request with `n` choices has the text of seed + k.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import Literal

Voice = Literal["content", "reasoning", "refusal"]

ADJECTIVES = (
    "patient", "quiet", "amber", "restless", "narrow", "distant", "early", "borrowed", "silver", "unhurried",
    "copper", "faithful", "crooked", "luminous", "salt-worn", "wandering", "gentle", "northern",
)  # fmt: skip
NOUNS = (
    "river", "lighthouse", "ferry", "orchard", "letter", "signal", "harbour", "lantern", "bridge", "market",
    "archive", "meadow", "compass", "violin", "kettle", "railway", "garden", "observatory", "tide", "sparrow",
)  # fmt: skip
VERBS = (
    "follows", "remembers", "outlives", "answers", "carries", "repairs", "greets", "borrows", "measures",
    "forgives", "shelters", "translates", "wakes", "counts",
)  # fmt: skip
PLACES = (
    "beside", "beyond", "beneath", "across from", "long before", "on the far side of", "just above", "without",
)  # fmt: skip
OPENINGS = (
    "", "", "", "Meanwhile,", "By evening,", "In other words,", "After the rain,", "As a rule,", "Once more,",
)  # fmt: skip

# Text that breaks careless readers of SSE, JSON or HTML. U+2028, U+2029 and U+0085 are line breaks to str.splitlines
# and to old JavaScript, but not to SSE; CR LF inside a string must stay escaped.
TROUBLE = (
    " 🌊", " 川の流れ", " \u2028",
    ' "quoted"', " back\\slash\\n", " <script>alert('x')</script>", " naïve café", " &amp;",
    " 👩‍👩‍👧‍👦", " \u2029\u0085", " data: [DONE]\n\n", " 𝔘𝔫𝔦", " \r\n\t", " مرحبا", " e\u0301", " \u0000", " 🏴‍☠️",
)  # fmt: skip
TROUBLE_EVERY = 4


def pieces(seed: int, length: int, *, unicode: bool = False, voice: Voice = "content") -> list[str]:
    """Return the `length` pieces of the text, in order; each is sent in a chunk of its own.

    The text consists of numbered sentences, one per line, so that a lost or repeated part is easy to see; the last
    piece ends with a full stop. Every piece except the last is independent of the length.
    """
    return list(iter_pieces(seed, length, unicode=unicode, voice=voice))


def iter_pieces(seed: int, length: int, *, unicode: bool = False, voice: Voice = "content") -> Iterator[str]:
    """Generate `pieces` one at a time, for texts that are too long for memory."""
    words = _words(seed, voice)
    if unicode:
        words = _troubled(words, seed)
    yield from islice(words, length - 1 if length else 0)
    if length:
        yield next(words).rstrip(".,") + "."


def after(whole: Iterable[str], skipped: int) -> Iterator[str]:
    """Generate the pieces without their first `skipped` characters."""
    for piece in whole:
        if len(piece) > skipped:
            yield piece[skipped:]
        skipped = max(0, skipped - len(piece))


def split_surrogates(whole: Iterable[str]) -> Iterator[str]:
    """Generate the same number of pieces, with each emoji at the end of a piece split over two pieces.

    Half of a surrogate pair is not a character: it exists in JSON only as an escape (`"\\ud83c"`), as some upstreams
    send it. Joining the halves needs `surrogatepass`.
    """
    carried = ""
    for piece in whole:
        held, carried = carried + piece, ""
        if held[-1] > "\uffff":
            high, low = divmod(ord(held[-1]) - 0x10000, 0x400)
            held, carried = held[:-1] + chr(0xD800 + high), chr(0xDC00 + low)
        yield held


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call; `"".join(pieces)` is its arguments, a JSON object."""

    id: str
    name: str
    pieces: tuple[str, ...]

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


def tool_calls(seed: int, amount: int) -> list[ToolCall]:
    """Return the model's tool calls."""
    return [_tool_call(seed, position) for position in range(amount)]


def _tool_call(seed: int, position: int) -> ToolCall:
    random = Random(f"tool:{seed}:{position}")  # a string gives the same seed in every process; hash() does not
    name = _pick(random, ("read_tide_table", "send_letter", "light_lantern", "find_ferry"))
    arguments = json.dumps(
        {
            "where": f"the {_pick(random, ADJECTIVES)} {_pick(random, NOUNS)}",
            "note": f'say "{_pick(random, NOUNS)}" — twice',
            "times": 1 + position,
        },
        ensure_ascii=False,
    )
    cuts = range(0, len(arguments), 9)
    return ToolCall(f"call_{seed:x}_{position}", name, tuple(arguments[at : at + 9] for at in cuts))


def _words(seed: int, voice: Voice) -> Iterator[str]:
    """Generate the endless text, word by word, each with the preceding space or line break."""
    random = Random(f"{voice}:{seed}")
    for number in count(1):
        lead = f"{number}." if number == 1 else f"\n{number}."
        yield lead if voice == "content" else f"{lead} {_ASIDE[voice]}"
        opening = _pick(random, OPENINGS)
        sentence = (
            f"{opening} {'The' if not opening else 'the'} {_pick(random, ADJECTIVES)} {_pick(random, NOUNS)}"
            f" {_pick(random, VERBS)} the {_pick(random, NOUNS)}"
        )
        if random.random() < 0.6:
            sentence += f" {_pick(random, PLACES)} the {_pick(random, ADJECTIVES)} {_pick(random, NOUNS)}"
        for word in (sentence + ".").split():
            yield " " + word


_ASIDE = {"reasoning": "Let me think:", "refusal": "I am sorry, I cannot help with that:"}


def _troubled(words: Iterator[str], seed: int) -> Iterator[str]:
    """Append difficult text to every fourth piece; all of it occurs within 68 pieces."""
    for position, word in enumerate(words, start=1):
        turn, rest = divmod(position, TROUBLE_EVERY)
        yield word + TROUBLE[(turn + seed) % len(TROUBLE)] if rest == 0 else word


def _pick(random: Random, among: tuple[str, ...]) -> str:
    # random() is guaranteed to give the same values in all Python versions; choice() is not.
    return among[int(random.random() * len(among))]

"""Valid replies with random damage as an upstream or a proxy could cause it."""

from __future__ import annotations

import copy
import random
from typing import Any

from tests.integration.broker.completion.cases import CASES, Json, chunks_of

ODD: list[Any] = [
    None,
    "",
    "x",
    "null",
    0,
    7,
    -1.5,
    True,
    False,
    [],
    {},
    ["x"],
    {"a": 1},
    [None],
    [{}],
    [[]],
    {"type": "text"},
]


def mutated(chooser: random.Random) -> list[Json]:
    """The chunks of one to three cases of the table, with some values replaced and some chunks reordered, repeated or
    lost."""
    chunks: list[Json] = []
    for case in chooser.sample(list(CASES.values()), chooser.randint(1, 3)):
        chunks += copy.deepcopy(chunks_of(case))
    for _ in range(chooser.randint(0, 6)):
        _change(chooser.choice(chunks), chooser)
    for _ in range(chooser.randint(0, 3)):
        chunks.insert(chooser.randrange(len(chunks)), copy.deepcopy(chooser.choice(chunks)))
    if chooser.random() < 0.3:
        chooser.shuffle(chunks)
    return chunks[chooser.randint(0, 2) :]


def _change(value: Any, chooser: random.Random) -> None:
    """Replace, remove or repeat one nested value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not keys:
        return
    key = chooser.choice(list(keys))
    inner = value[key]
    if isinstance(inner, dict | list) and inner and chooser.random() < 0.8:
        _change(inner, chooser)
    elif isinstance(value, list) and chooser.random() < 0.3:
        value.insert(key, copy.deepcopy(inner))
    elif chooser.random() < 0.2:
        del value[key]
    else:
        value[key] = copy.deepcopy(chooser.choice(ODD))

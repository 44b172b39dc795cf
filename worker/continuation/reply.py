"""The reply of an attempt so far: its merged chunks, and the usage of all calls that made it."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import msgspec

from broker.chunks import decode_chunk
from broker.completion.fold import Completion
from broker.events import CHUNK, USAGE
from broker.generation import bounded_usage
from worker.attempt import Attempt
from worker.continuation.chunks import identity_of
from worker.continuation.usage import estimate, total

Json = dict[str, Any]
FOLD_SLICE = 200  # chunks per slice, 1 ms: the event loop is shared
FIRST_CHUNKS = 10
"""Chunks among which one says the completion's id, if any does: Azure's first one does not."""


async def fold(attempt: Attempt, completion: Completion) -> None:
    """Merge the chunks in slices: a long completion would block the event loop for a tenth of a second."""
    for number, (kind, data) in enumerate(attempt.events()):
        if kind in (CHUNK, USAGE):
            completion.add(decode_chunk(data))
        if number % FOLD_SLICE == 0:
            await asyncio.sleep(0)


def identity(attempt: Attempt) -> Json:
    """Return what the chunks of the attempt have in common; {} if they do not say it."""
    found = (identity_of(decode_chunk(data)) for _, data in islice(attempt.events(), FIRST_CHUNKS))
    return next((one for one in found if one), Json())


def usage_of(attempt: Attempt, completion: Completion) -> Json:
    """Return the usage of all calls: as reported, and estimated for one that reported none."""
    reported, last = completion.usage or {}, attempt.continuation
    usage: Json = {}
    if last is None or last.reported:  # otherwise it is that of earlier calls only
        usage = bounded_usage(reported, len(msgspec.json.encode(reported)))
    if usage:
        return usage
    if last is None:
        return estimate(attempt.claim.prompt_tokens, attempt.token_count)
    return total(last.spent, estimate(last.prompt_tokens, attempt.token_count - last.tokens_before))

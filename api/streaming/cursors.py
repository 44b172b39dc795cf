"""Cursor resolution: the position from which a reader continues: `resolve_cursor` in dialects that cross attempts,
`newest_attempt` and `position_in_attempt` in those whose readers see one attempt."""

from __future__ import annotations

from broker.errors import InvalidCursor
from broker.generation import Generation
from broker.ids import START, Cursor, parse_cursor
from broker.store.store import Store


async def resolve_cursor(store: Store, wanted: Cursor, generation: Generation) -> Cursor | None:
    """Return the cursor if it is one of this log, or may have been one before the log was trimmed; None for any
    other."""
    if wanted in (START, generation.cursor):
        return wanted
    if await store.page(generation.id, Cursor(wanted.attempt, wanted.seq - 1), 1, until=wanted):
        return wanted
    (first,) = await store.page(generation.id, START, 1) or (None,)
    if first is not None and wanted < first.cursor and first.cursor.attempt > 0:
        return wanted
    return None


async def newest_attempt(store: Store, generation: Generation) -> Cursor:
    """Return where a reader begins that must see only one attempt: right before the newest one."""
    if generation.status == "queued":
        return generation.cursor  # the next attempt begins after it
    if generation.attempt <= 1:
        return START
    if generation.cursor.seq > 0 or not generation.ended:
        return Cursor(generation.cursor.attempt, -1)
    return await store.last_attempt(generation.id)


async def position_in_attempt(store: Store, after: str, generation: Generation) -> Cursor:
    """Return where a reader continues that must see only one attempt. After the terminal event: right before it, so
    that the reader gets the end again. Raises InvalidCursor for a cursor that is not of this log: nothing would ever
    follow it."""
    position = parse_cursor(after)
    before = Cursor(position.attempt, position.seq - 1)
    if generation.ended and position == generation.cursor:
        return before
    if position != START and not await store.page(generation.id, before, 1, until=position):
        raise InvalidCursor(f"The generation has no event {position}.")
    return position

"""Cursor resolution: the position from which a reader continues, in dialects that cross attempts. The routes of
`openai_chat`, whose readers see one attempt, have their own."""

from __future__ import annotations

from broker.generation import Generation
from broker.ids import START, Cursor
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

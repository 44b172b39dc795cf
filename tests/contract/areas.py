"""All areas, in the order of their recording. `storage`, `metrics` and `outage` depend on those before them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.contract import (
    access,
    browser,
    bulk,
    chat,
    command_line,
    events,
    library,
    limits,
    native,
    operation,
    several,
    storage,
)
from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, stage

GOLDEN = Path(__file__).parent / "golden"
AREAS: dict[str, Callable[[Stage, Recorder], Awaitable[None]]] = {
    "native": native.record,
    "bulk": bulk.record,
    "events": events.record,
    "chat": chat.record,
    "several": several.record,
    "access": access.record,
    "browser": browser.record,
    "operation": operation.record,
    "limits": limits.record,
    "storage": storage.record,
    "command_line": command_line.record,
    "metrics": operation.metrics,
    "wording": operation.wording,
    "library": library.record,
    "settings": library.settings,
    "outage": limits.outage,
}


async def recorded() -> dict[str, str | Exception]:
    """Record all areas. Returns for each its text, or the error that ended its recording."""
    texts: dict[str, str | Exception] = {}
    async with stage() as processes:
        for name, record in AREAS.items():
            recorder = Recorder()
            try:
                await record(processes, recorder)
                texts[name] = recorder.text()
            except Exception as error:
                texts[name] = error
    return texts

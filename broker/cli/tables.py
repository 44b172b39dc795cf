"""Generations as text: the rows of `ls`, the facts of `show`, aligned columns."""

from __future__ import annotations

from collections.abc import Iterator

from broker.chunks import Json

REASONS = {
    "queued": "all workers are busy",
    "upstream_limit": "the upstream has as many calls as it takes",
    "upstream_busy": "the upstream is busy",
    "upstream_down": "the upstream is down",
    "tenant_limit": "the tenant is at its limit",
    "paused": "the queue is paused",
    "scheduled": "scheduled for later",
}
"""Reasons why a generation waits, as text."""

HEADINGS = ("ID", "STATUS", "MODEL", "AGE", "ATTEMPT", "TOKENS", "ERROR")


def row(generation: Json, now: float) -> tuple[str, ...]:
    """Return a row of `ls`."""
    age, attempt = duration(now - generation["created_at"]), str(generation["attempt"] or "-")
    named = (generation["id"], generation["status"], generation["model"])
    return *named, age, attempt, tokens(generation["usage"]), error_code(generation)


def facts(generation: Json, now: float) -> Iterator[tuple[str, str]]:
    """Yield the lines of `show`."""
    for name in ("id", "status", "model"):
        yield name, generation[name]
    yield "age", duration(now - generation["created_at"])
    if generation["started_at"] is not None:
        yield "attempt", str(generation["attempt"])
        if generation["first_token_at"] is not None:
            yield "first token", f"after {generation['first_token_at'] - generation['created_at']:.3f} s"
        if generation["ended_at"] is not None:
            yield "duration", f"{generation['ended_at'] - generation['started_at']:.3f} s"
    yield "tokens", tokens(generation["usage"])
    yield from _queue_facts(generation, now)
    yield "cursor", generation["cursor"]
    for key, value in generation["metadata"].items():
        yield f"metadata.{key}", value
    if generation["error"]:
        yield "error", f"{generation['error']['message']} ({generation['error'].get('code')})"


def _queue_facts(generation: Json, now: float) -> Iterator[tuple[str, str]]:
    yield "priority", str(generation["priority"])
    if queue := generation["queue"]:
        yield "waiting", why(queue, now)
    for name in ("group", "upstream", "retry_of"):
        if generation[name]:
            yield name, generation[name]


def error_code(generation: Json) -> str:
    """Return the error code of a generation, or the reason why it waits; `-` if there is neither."""
    if error := generation["error"]:
        return str(error.get("code") or error.get("type") or "error")
    return str(generation["queue"]["reason"]) if generation.get("queue") else "-"


def why(queue: Json, now: float) -> str:
    """Explain the state of a waiting generation: reason, position, next try."""
    reason, position, retry_at = str(queue["reason"]), queue.get("position"), queue.get("retry_at")
    parts = [REASONS.get(reason) or one_line(reason)]
    if position is not None:
        parts.append(f"position {position}")
    if retry_at is not None and retry_at > now:
        parts.append(f"{'starts' if reason == 'scheduled' else 'next try'} in {duration(retry_at - now + 1)}")
    return ", ".join(parts)


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the rows as lines with aligned columns."""
    clean = [[one_line(cell) for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for cells in clean:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def one_line(text: str) -> str:
    """Replace characters that would move the cursor, start a line or change the direction of writing."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text)


def duration(seconds: float) -> str:
    """Format a duration with one unit: 0s, 59s, 3m, 2h, 5d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def until(moment: float | None, now: float) -> str:
    """Format the time until a moment; `-` if there is none or it has passed."""
    return duration(moment - now + 1) if moment is not None and moment > now else "-"


def tokens(usage: Json | None) -> str:
    """Format the number of tokens of the answer; `~` marks an estimate of ours, where the upstream reported none."""
    if not usage or usage.get("completion_tokens") is None:
        return "-"
    return f"{'~' if usage.get('estimated') else ''}{usage['completion_tokens']}"

"""Content negotiation between JSON and event streams by `Accept` (RFC 9110 §12.5.1)."""

from __future__ import annotations

from starlette.datastructures import Headers

JSON, EVENT_STREAM = "application/json", "text/event-stream"


def prefers_json(headers: Headers) -> bool:
    """Return whether JSON is preferred to an event stream.

    The higher `q` wins; at equal `q` a named type wins over a wildcard, and the event stream over JSON.
    """
    return _weight(headers, JSON) > _weight(headers, EVENT_STREAM)


def names_event_stream(headers: Headers) -> bool:
    """Return whether event streams are accepted by name, not by a wildcard."""
    weight, named = _weight(headers, EVENT_STREAM)
    return weight > 0 and named == 2


def _weight(headers: Headers, kind: str) -> tuple[float, int]:
    """Return the `q` of the most specific range that includes a type, and its specificity: 2 for the type itself, 1 for
    `type/*`, 0 for `*/*`. Without the header everything is accepted."""
    ranges = ("*/*", f"{kind.partition('/')[0]}/*", kind)
    found = (0.0, -1)
    for part in ",".join(headers.getlist("accept")).lower().split(",") if "accept" in headers else ("*/*",):
        accepted, *parameters = (piece.strip() for piece in part.split(";"))
        if accepted in ranges and ranges.index(accepted) > found[1]:
            found = (_quality(parameters), ranges.index(accepted))
    return found if found[0] > 0 else (0.0, 0)


def _quality(parameters: list[str]) -> float:
    """Return `q`, from 0 to 1. A value that is not a number counts as absent."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0

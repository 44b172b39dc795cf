"""Query parameters: each is read once, so that the value which is used is the value which was checked.

An empty value counts as absent. A parameter that is given twice is refused, since proxies and handlers differ in which
of the two they take. The list of generations, and the routes of the queue, of groups and of retries, also refuse
unknown ones: a misspelt filter would find, or change, everything. Streams ignore them, since clients add some so that
nothing is cached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.requests import HTTPConnection

from broker.errors import InvalidRequest

_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-", re.ASCII)
_OFFSET = re.compile(r"(?<=:\d\d) (\d\d:\d\d)$", re.ASCII)
_LAST_EVENT_ID = frozenset({"lastEventId", "lastEventID", "Last-Event-ID", "last-event-id"})


def check_known(connection: HTTPConnection, *names: str) -> None:
    """InvalidRequest for a parameter that is none of these; `name[]` stands for `name[key]` with any key, and
    `lastEventId` for all its spellings."""
    for name in connection.query_params:
        kind = f"{name.partition('[')[0]}[]" if name.endswith("]") else name
        if kind not in names and not (name in _LAST_EVENT_ID and "lastEventId" in names):
            listed = ", ".join(f"`{one.replace('[]', '[key]')}`" for one in names) or "none"
            message = f"`{name[:100]}` is not a parameter of this route; it has {listed}."
            raise InvalidRequest(message, param=name[:100], code="unknown_parameter")


def text_of(connection: HTTPConnection, name: str, *, empty: bool = False) -> str | None:
    """Return the value; None if there is none, or if it is empty and `empty` is not set.

    InvalidRequest if there are several.
    """
    values = connection.query_params.getlist(name)
    if len(values) > 1:
        raise _repeated(name)
    return values[0] if values and (values[0] or empty) else None


def texts_of(connection: HTTPConnection, name: str) -> Sequence[str]:
    """Return all values of a parameter that may be repeated."""
    return connection.query_params.getlist(name)


def list_of(connection: HTTPConnection, name: str) -> list[str]:
    """Return all values of a parameter that may be repeated, each with one value or several separated by commas."""
    return [part for value in connection.query_params.getlist(name) for part in value.split(",") if part]


def pairs_of(connection: HTTPConnection, name: str) -> dict[str, str]:
    """Return the values of `name[key]` by their keys. InvalidRequest if a key is given twice."""
    found: dict[str, str] = {}
    for full, value in connection.query_params.multi_items():
        if not full.startswith(f"{name}[") or not full.endswith("]"):
            continue
        key = full[len(name) + 1 : -1]
        if key in found:
            raise _repeated(full)
        found[key] = value
    return found


def time_of(connection: HTTPConnection, name: str, alias: str) -> float | None:
    """Return a time in unix seconds, from a parameter with two names. InvalidRequest if both are given."""
    first, second = text_of(connection, name), text_of(connection, alias)
    if first is not None and second is not None:
        raise InvalidRequest(f"`{name}` and `{alias}` are the same; use one.", param=alias)
    return seconds_of(first, name) if first is not None else seconds_of(second, alias)


def seconds_of(value: float | str | None, param: str) -> float | None:
    """Return a time in unix seconds, given as a number or by ISO 8601 (UTC if it has no offset). InvalidRequest."""
    if not isinstance(value, str):
        return value
    try:
        if _NUMBER.fullmatch(value):
            return float(value)
        if not _DATE.match(value):  # Python also takes 13 digits of milliseconds for a date
            raise ValueError
        # A `+` that is not escaped in a query means a space.
        moment = datetime.fromisoformat(_OFFSET.sub(r"+\1", value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        message = f"`{param}` must be unix seconds or a time by ISO 8601, such as 2026-01-31T12:00:00Z."
        raise InvalidRequest(message, param=param) from None


def whole_of(connection: HTTPConnection, name: str, default: int, most: int) -> int:
    """Return an integer from 1 to `most`, in digits, without leading zeros. InvalidRequest for any other text."""
    text = text_of(connection, name)
    number = default if text is None else int(text) if _WHOLE.fullmatch(text) else 0
    if not 1 <= number <= most:
        raise InvalidRequest(f"`{name}` must be an integer from 1 to {most}.", param=name)
    return number


def number_of(text: str) -> int:
    """Return the integer in a path, in digits without leading zeros; 0, which names nothing, for any other text."""
    return int(text) if _WHOLE.fullmatch(text) else 0


def choice_of(connection: HTTPConnection, name: str, *choices: str, empty: bool = False) -> str | None:
    """Return one of the choices; None if there is no value.

    InvalidRequest for any other text, and with `empty` for an empty one.
    """
    text = text_of(connection, name, empty=empty)
    if text is not None and text not in choices:
        allowed = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        raise InvalidRequest(f"`{name}` must be {allowed}.", param=name)
    return text


def flag_of(connection: HTTPConnection, name: str) -> bool:
    """Return whether a parameter is `true`; False if it has no value. InvalidRequest for anything but `false`."""
    return choice_of(connection, name, "true", "false") == "true"


def last_event_id_of(connection: HTTPConnection) -> str | None:
    """Return the id of the last event that a client received: the header `Last-Event-ID`, or the query parameter
    `lastEventId`, which EventSource polyfills use. The header takes precedence, and both take precedence over `after`,
    since a client that reconnects repeats its first URL."""
    named = [value for name, value in connection.query_params.multi_items() if name in _LAST_EVENT_ID]
    if len(named) > 1:
        raise _repeated("lastEventId")
    return connection.headers.get("last-event-id") or (named[0] if named else None) or None


def _repeated(name: str) -> InvalidRequest:
    return InvalidRequest(f"`{name}` is given more than once.", param=name)

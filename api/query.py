"""Query parameters: each is read once, so that the value which is used is the value which was checked.

An empty value counts as absent. A parameter that is given twice is refused, since proxies and handlers differ in which
of the two they take. Unknown names are ignored: browser caches, polyfills and trackers add their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.requests import HTTPConnection

from broker.errors import InvalidRequest

_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_LAST_EVENT_ID = frozenset({"lastEventId", "lastEventID", "Last-Event-ID", "last-event-id"})


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

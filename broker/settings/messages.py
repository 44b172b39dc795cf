"""Messages about settings that are wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from pydantic_core import ErrorDetails

from broker.settings.upstreams import UpstreamSettings

_WORDS = {
    "string_type": "is not a string",
    "tuple_type": "is not a list",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "bool_type": "is not true or false",
    "bool_parsing": "is not true or false",
    "missing": "is missing",
}
"""For what pydantic tells with Python's names of types, where JSON was written."""


def complaints(variables: Mapping[str, str], errors: Sequence[ErrorDetails]) -> list[str]:
    """pydantic's errors, without the values. `variables`: the name of each field's variable. A field of an entry is
    `TOKENCAST_UPSTREAMS[0].base_url`; one that is misspelled comes before the one that is missing for it."""
    ordered = sorted(errors, key=lambda wrong: wrong["type"] != "extra_forbidden")
    return [_complaint(variables, wrong) for wrong in ordered]


def _complaint(variables: Mapping[str, str], wrong: ErrorDetails) -> str:
    first, *inner = wrong["loc"]
    where = variables.get(str(first), str(first))
    message = wrong["msg"].removeprefix("Value error, ")
    if wrong["type"] == "extra_forbidden":
        message = _unknown_field(str(inner.pop()))
    elif inner:
        message = _WORDS.get(wrong["type"], message)
    for part in inner:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"{where}: {message}"


def _unknown_field(name: str) -> str:
    near = difflib.get_close_matches(name, UpstreamSettings.model_fields, n=1)
    return f"unknown field `{name[:64]}`" + (f"; did you mean `{near[0]}`?" if near else "")

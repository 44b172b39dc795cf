"""Error messages for invalid settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from broker.settings.tenants import TenantSettings
from broker.settings.upstream_entries import FORMS, UpstreamSettings
from broker.settings.webhook_settings import TenantWebhook

_WORDS = {
    "string_type": "is not a string",
    "tuple_type": "is not a list",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "bool_type": "is not true or false",
    "bool_parsing": "is not true or false",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "float_parsing": "is not a number",
    "missing": "is missing",
}
"""Replacements for messages of pydantic that use Python's names of types: the user wrote JSON."""


def format_errors(variables: Mapping[str, str], errors: Sequence[ErrorDetails]) -> list[str]:
    """Format pydantic's errors without the values. `variables`: the name of each field's variable. A field of an entry
    is `TOKENCAST_UPSTREAMS[0].base_url`. Unknown fields come first: a misspelled one explains a missing one."""
    ordered = sorted(errors, key=lambda wrong: wrong["type"] != "extra_forbidden")
    return [_format_error(variables, wrong) for wrong in ordered]


def _format_error(variables: Mapping[str, str], wrong: ErrorDetails) -> str:
    first, *inner = (part for part in wrong["loc"] if part not in FORMS)
    where = variables.get(str(first), str(first))
    message = wrong["msg"].removeprefix("Value error, ")
    if wrong["type"] == "extra_forbidden":
        message = _unknown_field(str(inner.pop()), _entry(str(first), inner))
    elif inner:
        message = _WORDS.get(wrong["type"], message)
    for part in inner:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"{where}: {message}"


def _entry(variable: str, inside: Sequence[object]) -> type[BaseModel]:
    if variable != "TOKENCAST_TENANTS":
        return UpstreamSettings
    return TenantWebhook if inside and inside[-1] == "webhook" else TenantSettings


def _unknown_field(name: str, entry: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name, entry.model_fields, n=1)
    return f"unknown field `{name[:64]}`" + (f"; did you mean `{near[0]}`?" if near else "")

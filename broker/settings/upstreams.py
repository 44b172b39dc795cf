"""Upstreams in the settings: the entries of TOKENCAST_UPSTREAMS, and the resolved upstreams that a worker uses."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from broker.errors import Misconfigured
from broker.runtime.environment import read_variable
from broker.settings.urls import check_http_url

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
EXAMPLE = "http://127.0.0.1:11434/v1"
_VARIABLE = r"[A-Z_][A-Z0-9_]*"
_REFERENCE = re.compile(r"\$\{(.*?)\}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
_LONGEST_NAME = 64
_LEAST_SECRET = 8  # minimum length of a header's value that is removed from the upstream's messages
# Headers that the client sets itself, or that would break the connection.
_OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def check_key(key: str) -> str:
    """Return the key unchanged. Raises ValueError with the reason why it is not valid in a header, without quoting
    it."""
    if not key.strip():
        raise ValueError("contains only white space")
    if key.splitlines() != [key]:
        raise ValueError("contains a line break (a carriage return, from a file made on Windows?); remove it")
    if key != key.strip():
        raise ValueError("has white space before or after the key; remove it")
    if not key.isascii() or not key.isprintable():
        raise ValueError("contains a character that is not valid in a key: use printable ASCII only")
    if " " in key:
        raise ValueError("contains white space; is it a single key?")
    return key


def check_base_url(url: str) -> str:
    """Return the URL unchanged. Raises ValueError if it is not a valid base URL."""
    return check_http_url(url, example=EXAMPLE)


def _check_variable(name: str) -> str:
    if not re.fullmatch(_VARIABLE, name):
        raise ValueError(
            "is not the name of an environment variable in capitals, such as OPENAI_API_KEY; the key is its value"
        )
    return name


def _check_name(name: str) -> str:
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"must be 1 to {_LONGEST_NAME} printable characters")
    return name


def _check_models(models: tuple[str, ...]) -> tuple[str, ...]:
    if not models or not all(models):
        raise ValueError("lists no model; omit it for all models")
    return models


class UpstreamSettings(BaseModel):
    """One entry of TOKENCAST_UPSTREAMS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    base_url: Annotated[str, AfterValidator(check_base_url)]
    api_key_env: Annotated[str, AfterValidator(_check_variable)] | None = OPENAI_KEY
    """Name of the variable that contains the key; None: no key is sent."""
    models: Annotated[tuple[str, ...], AfterValidator(_check_models)] = ("*",)
    usage: bool = True
    """Whether the upstream supports `stream_options.include_usage`."""
    headers: dict[str, str] = Field(default={}, repr=False)
    """Headers of each request; `${NAME}` in a value is replaced with the value of a variable."""

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        seen: set[str] = set()
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("contains an invalid header name")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} cannot be set: the client sets it itself")
            if name.lower() in seen:
                raise ValueError(f"{name} is given twice")
            seen.add(name.lower())
            _check_header(name, value)
        return headers

    @model_validator(mode="after")
    def _check_authorization(self) -> UpstreamSettings:
        if self.api_key_env is not None and "authorization" in map(str.lower, self.headers):
            raise ValueError("has an Authorization header and a key; with such a header, `api_key_env` must be null")
        return self


def _check_header(name: str, value: str) -> None:
    """Raise ValueError for an invalid value, with the name of the header and without the value."""
    if value != value.strip() or not value.isascii() or not value.isprintable():
        raise ValueError(
            f"the value of {name} has a line break, white space at its start or end, or a non-ASCII character"
        )
    for reference in _REFERENCE.findall(value):
        if not re.fullmatch(_VARIABLE, reference):
            raise ValueError(f"the value of {name} has a ${{…}} that is not the name of a variable in capitals")


@dataclass(frozen=True, slots=True)
class Upstream:
    """An OpenAI-compatible server, and the models it serves (shell patterns)."""

    name: str
    base_url: str
    models: tuple[str, ...]
    usage: bool
    api_key_env: str | None
    api_key: str | None = field(repr=False)
    """None: requests are sent without a key."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Strings that are removed from messages: the upstream may quote the request."""
    missing: tuple[str, ...] = ()
    """Required variables that are not set."""

    @property
    def resource(self) -> str:
        """Name in the queue: limits, refusals and the circuit hang on it. Percent-encoded, because the queue's keys
        join names with `,`, `:` and spaces."""
        return quote(self.name, safe="")

    @property
    def usable(self) -> bool:
        """Whether all required variables are set."""
        return not self.missing

    @property
    def named(self) -> tuple[str, ...]:
        """The patterns without wildcards, which are names of models."""
        return tuple(model for model in self.models if not set(model) & set("*?["))

    def serves(self, model: str) -> bool:
        """Return whether a model matches one of the patterns."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


def default_upstream(base_url: str | None, api_key: str | None, models: tuple[str, ...]) -> Upstream:
    """Return the upstream of OPENAI_BASE_URL."""
    url = base_url or OPENAI
    missing = () if api_key or not _needs_key(url) else (OPENAI_KEY,)
    return Upstream("default", url, models, True, OPENAI_KEY, api_key, (), (api_key,) if api_key else (), missing)


def upstream_of(entry: UpstreamSettings) -> Upstream:
    """Resolve an entry's variables. Raises Misconfigured with the name of one whose value is not valid in a header."""
    missing: list[str] = []
    key = _read(entry.api_key_env, check_key) if entry.api_key_env else None
    if entry.api_key_env and key is None and ("api_key_env" in entry.model_fields_set or _needs_key(entry.base_url)):
        missing.append(entry.api_key_env)
    headers: list[tuple[str, str]] = []
    for name, value in entry.headers.items():
        values = {each: _read(each, _check_part) for each in _REFERENCE.findall(value)}
        missing += [each for each, found in values.items() if found is None]
        headers.append((name, _REFERENCE.sub(lambda match, found=values: found[match[1]] or "", value)))
    return Upstream(
        entry.name,
        entry.base_url,
        entry.models,
        entry.usage,
        entry.api_key_env,
        key,
        tuple(headers),
        _secrets(key, [value for _, value in headers]),
        tuple(missing),
    )


def _secrets(key: str | None, values: list[str]) -> tuple[str, ...]:
    """Return the key, and the values of the headers and each word of them, the longest first."""
    words = [word for value in values for word in (value, *value.split()) if len(word) >= _LEAST_SECRET]
    return tuple(sorted({key, *words} if key else set(words), key=len, reverse=True))


def decode_upstreams(text: str) -> object:
    """Decode TOKENCAST_UPSTREAMS. Raises ValueError with the position of a syntax error."""
    try:
        value: object = json.loads(text, object_pairs_hook=_reject_duplicates)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not valid JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, list):
        raise ValueError('must be a list of objects: [{"name": …, "base_url": …}]')
    return cast(object, value)


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the field {name[:_LONGEST_NAME]!r} is given twice in one object")
    return dict(pairs)


def check_names(entries: tuple[UpstreamSettings, ...]) -> tuple[UpstreamSettings, ...]:
    """Return the entries unchanged. Raises ValueError if two have the same name."""
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two entries have the name {name!r}")
    return entries


def _needs_key(base_url: str) -> bool:
    """Return whether the server requires a key: OpenAI's does, a self-hosted one may not."""
    return urlsplit(base_url).hostname == urlsplit(OPENAI).hostname


def _read(name: str, check: Callable[[str], str]) -> str | None:
    value = read_variable(name)
    if not value:
        return None
    try:
        return check(value)
    except ValueError as error:
        raise Misconfigured(f"{name}: {error}") from None


def _check_part(value: str) -> str:
    """Check a part of a header's value, which can consist of several words, as in `Basic …`."""
    for word in value.split(" "):
        check_key(word)
    return value

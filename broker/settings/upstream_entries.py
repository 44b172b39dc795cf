"""The entries of TOKENCAST_UPSTREAMS: their fields, and the checks of these."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from broker.settings.urls import check_http_url

OPENAI_KEY = "OPENAI_API_KEY"
EXAMPLE = "http://127.0.0.1:11434/v1"
REFERENCE = re.compile(r"\$\{(.*?)\}")
"""A reference to a variable in the value of a header."""
_VARIABLE = r"[A-Z_][A-Z0-9_]*"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
_LONGEST_NAME = 64
_LONGEST = 2.0**31  # seconds
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


def _check_models(models: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
    if not models or not all(models):
        raise ValueError("lists no model; omit it for all models")
    if isinstance(models, dict) and not all(models.values()):
        raise ValueError("renames a model to an empty name")
    return models


FORMS = ("[list]", "[object]")
"""Tags of the two forms of `models`, which pydantic puts into the place of an error."""
Models = Annotated[
    Annotated[tuple[str, ...], Tag(FORMS[0])] | Annotated[dict[str, str], Tag(FORMS[1])],
    Discriminator(lambda value: FORMS[isinstance(value, dict)]),
]
Limit = Annotated[int, Field(ge=1, le=2**53, strict=True)] | None
ContinueWith = Literal["plain", "prefix", "continue_final_message"]
Timeout = Annotated[float, Field(gt=0, le=_LONGEST, allow_inf_nan=False)] | None


class UpstreamSettings(BaseModel):
    """One entry of TOKENCAST_UPSTREAMS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    base_url: Annotated[str, AfterValidator(check_base_url)]
    api_key_env: Annotated[str, AfterValidator(_check_variable)] | None = OPENAI_KEY
    """Name of the variable that contains the key; None: no key is sent."""
    models: Annotated[Models, AfterValidator(_check_models)] = ("*",)
    """Patterns; or an object: pattern of the requested model → name of the model that is sent."""
    usage: bool = True
    """Whether the upstream supports `stream_options.include_usage`."""
    headers: dict[str, str] = Field(default={}, repr=False)
    """Headers of each request; `${NAME}` in a value is replaced with the value of a variable."""
    max_concurrency: Limit = None
    """Maximum concurrent calls of all workers together; None: no configured limit, as for the rates."""
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    adaptive: bool = True
    """Whether the limit of concurrent calls is learned from refusals."""
    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    """Share among the upstreams that serve a model; None: strictly in the order of the list."""
    limits: Literal["upstream", "model"] | None = None
    """What the upstream's limits apply to: all its models together, or each pattern of `models`."""
    first_token_timeout: Timeout = None
    """Seconds; None: as in the settings, as `idle_timeout`."""
    idle_timeout: Timeout = None
    continue_with: ContinueWith = "plain"
    """How a request asks to go on after the start of a reply: as the last message (`plain`), marked with `prefix`
    (DeepSeek, Mistral), or with `continue_final_message` (vLLM, SGLang)."""

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
    for reference in REFERENCE.findall(value):
        if not re.fullmatch(_VARIABLE, reference):
            raise ValueError(f"the value of {name} has a ${{…}} that is not the name of a variable in capitals")


def decode_upstreams(text: str) -> object:
    """Decode TOKENCAST_UPSTREAMS. Raises ValueError with the position of a syntax error."""
    value = decode_json(text)
    if not isinstance(value, list):
        raise ValueError('must be a list of objects: [{"name": …, "base_url": …}]')
    return cast(object, value)


def decode_json(text: str) -> object:
    """Decode JSON without repeated fields. Raises ValueError with the position of a syntax error."""
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicates)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not valid JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


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

"""The upstreams that a process uses, and their resources; and the group of settings from which they are made."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

from broker.errors import Misconfigured, ModelNotFound
from broker.runtime.environment import read_variable
from broker.settings.upstream_entries import (
    OPENAI_KEY,
    REFERENCE,
    ContinueWith,
    UpstreamSettings,
    check_base_url,
    check_key,
    check_names,
    decode_upstreams,
)

OPENAI = "https://api.openai.com/v1"
NO_LANE = "-"
"""Lane of models that no upstream of this process serves."""
MOST_LABELS = 50
"""Maximum number of models that have labels of their own because a pattern matches them."""
OTHER_MODELS = "other"
"""Label of all further ones."""
_LABEL = re.compile(r"[\w./:@+-]{1,100}", re.ASCII)
_WILDCARDS = frozenset("*?[")
_LEAST_SECRET = 8
"""Minimum length of a key or a header's value that is removed from the upstream's messages. Shorter ones are
placeholders for local servers (`none`, `EMPTY`, `x`): removing them would damage the messages."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Configured limits of a resource; None: none. The meanings are those of the fields of `UpstreamSettings`."""

    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    adaptive: bool = True
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """What limits, refusals and the circuit hang on: an upstream, or one pattern of its models."""

    name: str
    """Percent-encoded, because lanes and keys join names with `,`, `:`, `/` and spaces."""
    upstream: str
    pattern: str
    """The pattern of the models; "" for all models of the upstream."""
    max_concurrency: int | None
    rpm: int | None
    tpm: int | None
    adaptive: bool
    weight: float | None
    usable: bool
    """Whether this process can call the upstream."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An OpenAI-compatible server, and the models it serves (shell patterns)."""

    name: str
    base_url: str
    models: tuple[str, ...]
    usage: bool
    api_key_env: str | None
    api_key: str | None = field(default=None, repr=False)
    """None: requests are sent without a key."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Strings that are removed from messages: the upstream may quote the request."""
    missing: tuple[str, ...] = ()
    """Required variables that are not set."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Patterns of requested models, and the model that is sent instead."""
    limits: Limits = Limits()
    limited_by_model: bool = False
    """Whether each pattern of the models has the limits for itself."""
    first_token_timeout: float | None = None
    """Seconds; None: as in the settings, as `idle_timeout`."""
    idle_timeout: float | None = None
    continue_with: ContinueWith = "plain"
    """How it is asked to go on after the start of a reply."""

    @property
    def resources(self) -> tuple[Resource, ...]:
        """The resources that requests to this upstream use."""
        patterns = dict.fromkeys(self.models) if self.limited_by_model else ("",)
        return tuple(map(self._resource, patterns))

    def resource_of(self, model: str) -> str:
        """Return the name of the resource for a model that the upstream serves."""
        return self._name(self._pattern_of(model) or "") if self.limited_by_model else self._name("")

    def _resource(self, pattern: str) -> Resource:
        limits = self.limits
        return Resource(
            self._name(pattern),
            self.name,
            pattern,
            limits.max_concurrency,
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.adaptive,
            limits.weight,
            self.usable,
        )

    def _name(self, pattern: str) -> str:
        return f"{_encode(self.name)}/{_encode(pattern)}" if pattern else _encode(self.name)

    @property
    def usable(self) -> bool:
        """Whether all required variables are set."""
        return not self.missing

    @property
    def named(self) -> tuple[str, ...]:
        """The patterns without wildcards, which are names of models."""
        return tuple(model for model in self.models if not set(model) & _WILDCARDS)

    def serves(self, model: str) -> bool:
        """Return whether a model matches one of the patterns."""
        return self._pattern_of(model) is not None

    def sent_model(self, model: str) -> str:
        """Return the name that the upstream has for a requested model."""
        return dict(self.renamed).get(self._pattern_of(model) or "", model)

    def _pattern_of(self, model: str) -> str | None:
        return next((pattern for pattern in self.models if fnmatch.fnmatchcase(model, pattern)), None)


def _encode(name: str) -> str:
    """Percent-encode a name; never as `-`, which is the lane of models without an upstream."""
    return "%2D" if name == "-" else quote(name, safe="")


def default_upstream(
    base_url: str | None,
    api_key: str | None,
    models: tuple[str, ...],
    limits: Limits,
    continue_with: ContinueWith = "plain",
) -> Upstream:
    """Return the upstream of OPENAI_BASE_URL."""
    url = base_url or OPENAI
    return Upstream(
        "default",
        url,
        models,
        usage=True,
        api_key_env=OPENAI_KEY,
        api_key=api_key,
        secrets=_secrets(api_key, []),
        missing=() if api_key or not _is_openai(url) else (OPENAI_KEY,),
        continue_with=continue_with,
        limits=limits,  # of all models together: a gateway may not know the URL, and must find the same resource
    )


def upstream_of(entry: UpstreamSettings) -> Upstream:
    """Resolve an entry's variables. Raises Misconfigured with the name of one whose value is not valid in a header."""
    missing: list[str] = []
    key = _read(entry.api_key_env, check_key) if entry.api_key_env else None
    if entry.api_key_env and key is None and ("api_key_env" in entry.model_fields_set or _is_openai(entry.base_url)):
        missing.append(entry.api_key_env)
    headers: list[tuple[str, str]] = []
    for name, value in entry.headers.items():
        values = {each: _read(each, _check_part) for each in REFERENCE.findall(value)}
        missing += [each for each, found in values.items() if found is None]
        headers.append((name, REFERENCE.sub(lambda match, found=values: found[match[1]] or "", value)))
    return Upstream(
        entry.name,
        entry.base_url,
        tuple(entry.models),
        entry.usage,
        entry.api_key_env,
        key,
        tuple(headers),
        _secrets(key, [value for _, value in headers]),
        tuple(missing),
        renamed=tuple(entry.models.items()) if isinstance(entry.models, dict) else (),
        limits=Limits(
            entry.max_concurrency, entry.requests_per_minute, entry.tokens_per_minute, entry.adaptive, entry.weight
        ),
        limited_by_model=_is_openai(entry.base_url) if entry.limits is None else entry.limits == "model",
        first_token_timeout=entry.first_token_timeout,
        idle_timeout=entry.idle_timeout,
        continue_with=entry.continue_with,
    )


def _secrets(key: str | None, values: list[str]) -> tuple[str, ...]:
    """Return the key, and the values of the headers and each word of them, the longest first."""
    words = {key or "", *(word for value in values for word in (value, *value.split()))}
    return tuple(sorted((word for word in words if len(word) >= _LEAST_SECRET), key=len, reverse=True))


def _is_openai(base_url: str) -> bool:
    """Return whether the server is OpenAI's: it requires a key, and limits each model for itself. A self-hosted one may
    do neither."""
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


class ModelLabels:
    """Labels of models in metrics: the upstream, and the model as the settings name it. Where they have a pattern, the
    first MOST_LABELS models that were asked for have labels of their own: callers can invent names without end."""

    def __init__(self, settings: UpstreamGroup) -> None:
        self._settings = settings
        self._known: set[tuple[str, str]] = set()

    def of(self, model: str) -> tuple[str, str]:
        """Return the upstream and the label of a model; "" for both if no upstream serves it."""
        upstream, pattern = label = self._settings.label_of(model)
        if not set(pattern) & _WILDCARDS:
            return label
        own = upstream, model
        if own not in self._known:
            if len(self._known) >= MOST_LABELS or not _LABEL.fullmatch(model):
                return upstream, OTHER_MODELS
            self._known.add(own)
        return own


class UpstreamGroup(BaseSettings):
    """The settings of upstreams, and what is made of them."""

    openai_base_url: str | None = Field(
        None,
        validation_alias="OPENAI_BASE_URL",
        description="Base URL of the upstream; default `https://api.openai.com/v1`",
    )
    openai_api_key: str | None = Field(
        None, validation_alias="OPENAI_API_KEY", repr=False, description="API key of the upstream"
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",), description="Models of that upstream, as comma-separated patterns"
    )
    upstream_concurrency: int = Field(
        0,
        ge=0,
        description="Maximum concurrent calls of that upstream, of all workers together; 0 = no configured limit, here "
        "and in the next two",
    )
    upstream_rpm: int = Field(0, ge=0, description="Maximum calls of that upstream per minute")
    upstream_tpm: int = Field(0, ge=0, description="Maximum tokens of that upstream per minute")
    upstream_continue_with: ContinueWith = Field(
        "plain",
        description="How that upstream is asked to go on after a text: `plain`, `prefix` or "
        "`continue_final_message` ([Upstreams](upstreams.md#going-on-after-a-text))",
    )
    upstreams: Annotated[tuple[UpstreamSettings, ...], NoDecode] = Field(
        (),
        description="Several upstreams instead, as JSON: `[{"
        + ", ".join(f'"{name}"' for name in UpstreamSettings.model_fields)
        + "}]`: [Upstreams](upstreams.md#settings)",
    )

    @field_validator("openai_base_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        return None if value is None else check_base_url(value)

    @field_validator("openai_api_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        return None if value is None else check_key(value)

    @field_validator("upstreams", mode="before")
    @classmethod
    def _decode_upstreams(cls, value: object) -> object:
        return decode_upstreams(value) if isinstance(value, str) else value

    @field_validator("upstreams")
    @classmethod
    def _check_upstreams(cls, value: tuple[UpstreamSettings, ...]) -> tuple[UpstreamSettings, ...]:
        return check_names(value)

    def all_upstreams(self) -> tuple[Upstream, ...]:
        """Return the upstreams in lookup order. Built once: each request calls this."""
        return self._all_upstreams

    @cached_property
    def _all_upstreams(self) -> tuple[Upstream, ...]:
        if self.upstreams:
            return tuple(map(upstream_of, self.upstreams))
        limits = Limits(self.upstream_concurrency or None, self.upstream_rpm or None, self.upstream_tpm or None)
        way = self.upstream_continue_with
        return (default_upstream(self.openai_base_url, self.openai_api_key, self.models, limits, way),)

    def upstream_for(self, model: str) -> Upstream:
        """Return the first upstream that serves a model. Raises ModelNotFound."""
        for upstream in self.all_upstreams():
            if upstream.serves(model):
                return upstream
        raise ModelNotFound(f"The model `{model[:100]}` does not exist or is not served here.")

    def route(self, model: str) -> tuple[Upstream, ...]:
        """Return the upstreams that serve a model, in the order in which they are asked."""
        return tuple(upstream for upstream in self.all_upstreams() if upstream.serves(model))

    def lane_of(self, model: str) -> str:
        """Return the lane of a model: the names of the resources that serve it, for the queue."""
        return ",".join(upstream.resource_of(model) for upstream in self.route(model)) or NO_LANE

    def current_lane(self, lane: str, model: str) -> str:
        """Return a lane unchanged; that of the model if this process knows none of its upstreams."""
        return lane if self._resources.keys() & set(lane.split(",")) else self.lane_of(model)

    def name_of(self, resource: str) -> str:
        """Return the name of the upstream that a resource belongs to."""
        upstream = self.upstream_of(resource)
        return unquote(resource) if upstream is None else upstream.name

    def resources(self) -> tuple[Resource, ...]:
        """Return the resources of all upstreams, with their limits."""
        return tuple(resource for resource, _ in self._resources.values())

    def upstream_of(self, resource: str) -> Upstream | None:
        """Return the upstream that a resource belongs to, by its name; None if these settings do not have it."""
        found = self._resources.get(resource)
        return None if found is None else found[1]

    @cached_property
    def _resources(self) -> dict[str, tuple[Resource, Upstream]]:
        return {each.name: (each, upstream) for upstream in self.all_upstreams() for each in upstream.resources}

    def label_of(self, model: str) -> tuple[str, str]:
        """Return the upstream and the pattern in the settings that matches a model; "" for both if none does."""
        for upstream in self.all_upstreams():
            for pattern in upstream.models:
                if fnmatch.fnmatchcase(model, pattern):
                    return upstream.name, pattern
        return "", ""

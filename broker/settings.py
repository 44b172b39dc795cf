"""Everything that can be set, from the environment, in one place. Built once per process and passed down.

Names everybody knows keep them (REDIS_URL, OPENAI_API_KEY, PORT …); the rest is prefixed TOKENCAST_. A secret may
also stand in a file named by `<NAME>_FILE`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from broker.address import parse_address
from broker.errors import Misconfigured, ModelNotFound
from broker.requests import MAX_TTL_SECONDS

SECRETS = (
    "REDIS_URL",
    "TOKENCAST_STREAMS_URL",
    "OPENAI_API_KEY",
    "TOKENCAST_API_KEYS",
    "TOKENCAST_SECRET",
    "TOKENCAST_API_KEY",
)
SIMULATED_KEY = "simulated"
"""The API key that marks the simulated upstream, so that a worker can say what it talks to."""


class UpstreamSettings(BaseModel):
    """One entry of TOKENCAST_UPSTREAMS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    base_url: str
    api_key_env: str = "OPENAI_API_KEY"
    models: tuple[str, ...] = ("*",)
    usage: bool = True
    """Whether the upstream knows `stream_options.include_usage`."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An OpenAI-compatible server, and the models it is asked for (shell patterns)."""

    name: str
    base_url: str
    models: tuple[str, ...]
    usage: bool
    api_key_env: str
    api_key: str | None = dataclasses.field(repr=False)

    @property
    def named(self) -> tuple[str, ...]:
        """Those of the patterns that are a name."""
        return tuple(model for model in self.models if not set(model) & set("*?["))

    def serves(self, model: str) -> bool:
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


class Settings(BaseSettings):
    """The settings of gateway and worker. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENCAST_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias="REDIS_URL",
        repr=False,
        description="The queue's Redis; the logs' too unless `TOKENCAST_STREAMS_URL` is set",
    )
    streams_url: str | None = Field(None, repr=False, description="The logs' Redis; default `REDIS_URL`")
    openai_base_url: str | None = Field(
        None, validation_alias="OPENAI_BASE_URL", description="The upstream; default the SDK's own"
    )
    openai_api_key: str | None = Field(
        None, validation_alias="OPENAI_API_KEY", repr=False, description="The upstream's key"
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",), description="Models of that upstream, comma-separated patterns"
    )
    upstreams: tuple[UpstreamSettings, ...] = Field(
        (), description='Several upstreams instead, JSON: `[{"name", "base_url", "api_key_env", "models", "usage"}]`'
    )
    host: str = Field("127.0.0.1", validation_alias="HOST", description="Address the gateway binds to")
    port: int = Field(
        8000, ge=0, le=65535, validation_alias="PORT", description="Port the gateway binds to; 0 = any free one"
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), repr=False, description="Comma-separated `tenant:sha256-of-key`; empty = open, then loopback only"
    )
    allow_open: bool = Field(False, description="1 = without keys bind to other addresses than loopback too")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated origins that browsers may call from"
    )
    secret: str | None = Field(
        None, min_length=16, repr=False, description="Signs stream tokens; default a random one in the queue's Redis"
    )
    tenant_running: int = Field(
        20, ge=0, description="Generations of one tenant that run at once; 0 = any number, here and below"
    )
    tenant_queued: int = Field(100, ge=0, description="Generations of one tenant that wait")
    tenant_per_minute: int = Field(60, ge=0, description="Generations that one tenant asks for in a minute")
    tenant_subscribers: int = Field(500, ge=0, description="Subscribers of one tenant on a gateway")
    generation_subscribers: int = Field(50, ge=0, description="Subscribers of one generation on a gateway")
    slots: int = Field(100, ge=1, description="Generations a worker runs at once")
    max_attempts: int = Field(
        3, ge=1, description="Times a generation is started before it fails as `attempts_exhausted`"
    )
    lease: float = Field(15, ge=0.5, description="A worker that is silent for so long has lost its generations")
    first_token_timeout: float = Field(120, gt=0, description="From the upstream call to the first chunk")
    idle_timeout: float = Field(120, gt=0, description="Between two chunks; keep-alive comments do not count")
    retry_budget: float = Field(
        9,
        ge=0,
        description="For so long a call that the upstream refuses (429, 5xx) is repeated, before the first token",
    )
    # Below the 10 s for which an OpenAI client's status line waits: a refusal then still has a status of its own.
    max_duration: float = Field(900, gt=0, description="A generation's longest run")
    retention: float = Field(86400, ge=1, le=MAX_TTL_SECONDS, description="How long an ended generation stays readable")
    max_body: int = Field(1024 * 1024, ge=1, description="Bytes of a request body")
    header_timeout: float = Field(
        10, gt=0, description="A request's head must be there so soon; a body may take longer, at 16 KiB a second"
    )
    max_connections: int = Field(
        0, ge=0, description="Connections a gateway serves; 0, and at most: four fifths of the files it may open"
    )
    max_output: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        description="Bytes of one attempt's chunks; beyond it: `output_too_large`",
    )
    heartbeat: float = Field(15, gt=0, description="Comment on an event stream")
    send_timeout: float = Field(
        10, gt=0, description="A subscriber that takes nothing for so long is dropped, and may resume"
    )
    drain: float = Field(10, ge=0, description="The gateway's, over which it ends its streams when it is told to stop")
    worker_drain: float = Field(
        300, ge=0, description="The worker's; what still runs then, or at a second signal, is handed over"
    )
    processes: int = Field(1, ge=1, description="Gateway processes on one port; what is set per gateway is per process")
    cache_bytes: int = Field(
        256 * 1024 * 1024, ge=1024 * 1024, description="Framed bytes a gateway keeps of recently read logs"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port at which a worker answers `/metrics`, `/healthz`, `/readyz`; 0 = none"
    )
    metrics_dir: str | None = Field(
        None, description="Where gateways on one port leave each other their metrics; an empty directory at the start"
    )
    log: Literal["text", "json"] = Field("text", description="Log format, `text` or `json`")

    @field_validator("redis_url", "streams_url")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        address = parse_address(value) if value is not None else None
        if address is not None and address.kind == "cluster" and info.field_name == "redis_url":
            raise ValueError(
                "the queue cannot be on a Redis Cluster; set it to one server or to Sentinel's, and "
                "TOKENCAST_STREAMS_URL to the cluster"
            )
        return value

    @field_validator("models", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object, info: ValidationInfo) -> object:
        """In a file, each may have a line of its own."""
        if not isinstance(value, str):
            return value
        parts = tuple(part.strip() for part in value.replace("\n", ",").split(",") if part.strip())
        if not parts and info.field_name == "api_keys":
            raise ValueError("names no key; unset it to serve everybody")
        return parts

    @property
    def logs_url(self) -> str:
        return self.streams_url or self.redis_url

    @property
    def tenants(self) -> dict[str, str]:
        """SHA-256 of each key (hex) → its tenant. Misconfigured where an entry is not `tenant:sha256`."""
        tenants: dict[str, str] = {}
        for entry in self.api_keys:
            tenant, _, digest = entry.partition(":")
            if not is_tenant(tenant) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise Misconfigured(
                    "TOKENCAST_API_KEYS holds `tenant:sha256-of-key`, comma-separated; a tenant is letters and digits."
                )
            tenants[digest] = tenant
        return tenants

    def all_upstreams(self) -> tuple[Upstream, ...]:
        """In the order in which a model is looked up. Read once: a request's path goes through here."""
        return self._all_upstreams

    @cached_property
    def _all_upstreams(self) -> tuple[Upstream, ...]:
        if self.upstreams:
            return tuple(
                Upstream(u.name, u.base_url, u.models, u.usage, u.api_key_env, read_variable(u.api_key_env))
                for u in self.upstreams
            )
        base_url = self.openai_base_url or "https://api.openai.com/v1"
        return (Upstream("default", base_url, self.models, True, "OPENAI_API_KEY", self.openai_api_key),)

    def upstream_for(self, model: str) -> Upstream:
        for upstream in self.all_upstreams():
            if upstream.serves(model):
                return upstream
        raise ModelNotFound(f"The model `{model[:100]}` does not exist or is not served here.")

    def label_of(self, model: str) -> tuple[str, str]:
        """The upstream, and the model as the settings spell it: a pattern, if one serves it. What callers ask for is
        theirs to invent, and names no metric."""
        for upstream in self.all_upstreams():
            for pattern in upstream.models:
                if fnmatch.fnmatchcase(model, pattern):
                    return upstream.name, pattern
        return "", ""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls)


class ClientSettings(BaseSettings):
    """The settings of the command line's client commands."""

    model_config = SettingsConfigDict(env_prefix="TOKENCAST_", frozen=True, extra="ignore", env_ignore_empty=True)

    url: str = Field("http://127.0.0.1:8000", description="The gateway that the client commands talk to")
    api_key: str | None = Field(None, repr=False, description="The key they present")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return Settings.settings_customise_sources(settings_cls, *sources, **named)


class _SecretFiles(PydanticBaseSettingsSource):
    """`<NAME>_FILE` for the variables in SECRETS."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = variable_of(field_name, field)
        return (_from_file(name) if name in SECRETS else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field_name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, field_name)
            if value is not None:
                found[str(field.validation_alias or field_name)] = value
        return found


def is_tenant(name: str) -> bool:
    return name.isalnum()


AnySettings = TypeVar("AnySettings", Settings, ClientSettings)


def load(kind: type[AnySettings]) -> AnySettings:
    """Reads the environment. Misconfigured names the variables that are wrong, without their values."""
    try:
        return kind()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        lines = [
            f"{_variable(kind, str(wrong['loc'][0]))}: {wrong['msg'].removeprefix('Value error, ')}"
            for wrong in error.errors()
        ]
        raise Misconfigured("; ".join(lines)) from None


def read_variable(name: str) -> str | None:
    """A variable that another one names (`api_key_env`), or its file."""
    return _from_file(name) or os.environ.get(name)


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with some variables set, whatever stood in their files: for a child process."""
    kept = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in variables}
    return {**kept, **variables}


def variables() -> Iterator[tuple[str, str, str]]:
    """(name, default, description) of every variable: the README's table, which a test compares."""
    for kind in (Settings, ClientSettings):
        for name, field in kind.model_fields.items():
            yield variable_of(name, field), _shown(field.default), field.description or ""


def variable_of(field_name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or f"TOKENCAST_{field_name.upper()}")


def _variable(kind: type[BaseSettings], location: str) -> str:
    field = kind.model_fields.get(location)
    return variable_of(location, field) if field else location


def _shown(default: object) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(int(default) if isinstance(default, bool) else default)


def _from_file(name: str) -> str | None:
    """An empty file is a mistake: without keys everybody would be served."""
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return None
    if os.environ.get(name):
        raise Misconfigured(f"{name} and {name}_FILE are both set; unset one of them.")
    try:
        value = Path(path).read_text("utf-8").strip()
    except OSError as error:
        raise Misconfigured(f"{name}_FILE: {error.strerror}: {path}") from None
    except UnicodeDecodeError:
        raise Misconfigured(f"{name}_FILE: no UTF-8 text: {path}") from None
    if not value:
        raise Misconfigured(f"{name}_FILE: empty: {path}")
    return value

"""The settings, read from the environment. Created once per process and passed down.

Well-known variables keep their names (REDIS_URL, OPENAI_API_KEY, PORT …); all others have the prefix TOKENCAST_. A
secret can also be in a file, whose path is in `<NAME>_FILE`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from broker.errors import Misconfigured
from broker.redis.url import parse_redis_url
from broker.request.options import MAX_DELAY, MAX_TTL_SECONDS
from broker.runtime.environment import is_utf8
from broker.settings.api_keys import ApiKey, keys_of, split_entries
from broker.settings.origins import normalize_host, normalize_origin
from broker.settings.secret_files import SecretFiles
from broker.settings.tenants import TenantGroup, check_keys
from broker.settings.upstreams import UpstreamGroup
from broker.settings.webhook_settings import OwnWebhooks, WebhookSettings

SIMULATED_KEY = "simulated"
"""API key of the simulated upstream, by which a worker recognizes it."""
_MOST = 2.0**53
_LONGEST = 2.0**31  # seconds


class Settings(UpstreamGroup, TenantGroup, WebhookSettings):
    """Settings of gateway and worker. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENCAST_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias="REDIS_URL",
        repr=False,
        description="Redis of the queue, and of the logs unless `TOKENCAST_STREAMS_URL` is set",
    )
    streams_url: str | None = Field(None, repr=False, description="Redis of the logs; default `REDIS_URL`")
    host: str = Field("127.0.0.1", validation_alias="HOST", description="Address the gateway binds to")
    port: int = Field(
        8000, ge=0, le=65535, validation_alias="PORT", description="Port the gateway binds to; 0 = any free port"
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Comma-separated `tenant:sha256-of-key`, with `:operator` or `:read` for a [role]"
        "(deploying.md#roles-of-keys) and `:expires=2027-01-31` for an end; empty = no authentication, loopback only",
    )
    allow_open: bool = Field(False, description="1 = bind to addresses other than loopback even without keys")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated origins from which browsers may call the API"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated host names by which browsers may reach a gateway without keys, such as "
        "`tokencast.example` or `*.example`; localhost and `HOST` are always allowed",
    )
    secret: str | None = Field(
        None,
        min_length=16,
        repr=False,
        description="Secret that signs stream tokens; default: a random one in the queue's Redis",
    )
    slots: int = Field(100, ge=1, description="Maximum generations a worker runs at once")
    max_attempts: int = Field(
        3, ge=1, description="Maximum attempts of a generation; then it fails with `attempts_exhausted`"
    )
    lease: float = Field(
        15, ge=0.5, description="Lease: a worker that has not renewed it for this long loses its generations"
    )
    first_token_timeout: float = Field(120, gt=0, description="Maximum time from the upstream call to the first chunk")
    idle_timeout: float = Field(
        120, gt=0, description="Maximum time between two chunks; keep-alive comments do not count"
    )
    retry_budget: float = Field(
        9,
        ge=0,
        description="Time for which a generation of the chat route may wait for its upstream, before the first token",
    )
    # Less than the 10 s for which the chat route delays its status line: a refusal still gets its own HTTP status.
    queue_timeout: float = Field(
        3600, ge=0, le=MAX_DELAY, description="Time for which a generation may wait in the queue; then it fails"
    )
    queue_ageing: float = Field(
        60, gt=0, description="Time after which a priority that waits has its turn, whatever goes before it"
    )
    max_duration: float = Field(900, gt=0, description="Maximum run time of a generation")
    retention: float = Field(
        86400, ge=1, le=MAX_TTL_SECONDS, description="Time for which an ended generation stays readable"
    )
    prompt_preview: bool = Field(
        True, description="0 = do not store the first line of a prompt for lists, the dashboard and the activity"
    )
    max_body: int = Field(1024 * 1024, ge=1, description="Maximum size of a request body, in bytes")
    max_batch: int = Field(
        32 * 1024 * 1024,
        ge=1,
        description="Maximum size of a batch, in bytes; each of its requests has at most TOKENCAST_MAX_BODY",
    )
    header_timeout: float = Field(
        10, gt=0, description="Timeout for request headers; a body may take longer, at 16 KiB a second or more"
    )
    keep_alive: int = Field(
        75,
        ge=1,
        description="Idle time before a kept-alive connection is closed; must be longer than the proxy's, often 60 s",
    )
    max_connections: int = Field(
        0, ge=0, description="Maximum connections; 0 = 80 % of the file limit, which is also the upper bound"
    )
    max_output: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        description="Maximum bytes of one attempt's chunks and of one upstream event, else `output_too_large`",
    )
    heartbeat: float = Field(15, gt=0, description="Interval of heartbeat comments on an event stream")
    send_timeout: float = Field(
        10, gt=0, description="Time after which a subscriber that reads nothing is disconnected; it may resume"
    )
    unread_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Maximum bytes of complete responses that a gateway holds until callers have read them, a quarter "
        "per tenant; above it, further responses wait, and those read at less than 16 KiB a second are dropped",
    )
    drain: float = Field(10, ge=0, description="Time over which a stopping gateway ends its streams")
    worker_drain: float = Field(
        300,
        ge=0,
        description="Time a stopping worker gives its generations; then, or at a second signal, they are handed over",
    )
    processes: int = Field(
        1, ge=1, le=1024, description="Gateway processes on one port; limits per gateway apply to each process"
    )
    cache_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        description="Maximum bytes of framed events that a gateway caches of recently read logs",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port on which a worker serves `/metrics`, `/healthz` and `/readyz`; 0 = none"
    )
    metrics_dir: str | None = Field(
        None, description="Directory in which gateways on one port share their metrics; must be empty at the start"
    )
    log: Literal["text", "json"] = Field("text", description="Log format, `text` or `json`")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged: `debug`, `info`, `warning` or `error`"
    )

    @field_validator("redis_url", "streams_url")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        address = parse_redis_url(value) if value is not None else None
        if address is not None and address.kind == "cluster" and info.field_name == "redis_url":
            raise ValueError(
                "the queue cannot be on a Redis Cluster; use a single server or Sentinel here, and set "
                "TOKENCAST_STREAMS_URL to the cluster"
            )
        return value

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: str | None) -> str | None:
        """Reject surrounding white space: it is removed from files, so the same secret in a variable would differ."""
        if value is not None and (value != value.strip() or not value.isprintable()):
            raise ValueError("contains a control character, such as a line break, or white space at its start or end")
        return value

    @field_validator("models", "api_keys", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object, info: ValidationInfo) -> object:
        """Split a comma-separated list. In a file, the items can also be on separate lines."""
        if not isinstance(value, str):
            return value
        parts = split_entries(value)
        if not parts and info.field_name == "api_keys":
            raise ValueError("contains no key; unset it to serve without authentication")
        if not parts and info.field_name == "models":
            raise ValueError("contains no model; unset it for all models")
        return parts

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        """Accept the names of levels as Python spells them, too."""
        return value.lower() if isinstance(value, str) else value

    @field_validator("metrics_dir")
    @classmethod
    def _check_directory(cls, value: str | None) -> str | None:
        if value is not None and not (os.path.isdir(value) and os.access(value, os.R_OK | os.W_OK | os.X_OK)):
            raise ValueError("is not a writable directory")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object) -> object:
        if isinstance(value, str) and not is_utf8(value):
            raise ValueError("is not valid UTF-8")
        return value

    @field_validator("*")
    @classmethod
    def _check_number(cls, value: object) -> object:
        """Reject infinity, and numbers too large for timers or counters."""
        most = _LONGEST if isinstance(value, float) else _MOST
        if isinstance(value, int | float) and value > most:
            raise ValueError(f"must be at most {most:.0f}")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalize_origin, value))

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        """Accept an IPv6 address in brackets too."""
        return value[1:-1] if value.startswith("[") and value.endswith("]") else value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalize_host, value))

    @property
    def logs_url(self) -> str:
        """URL of the logs' Redis."""
        return self.streams_url or self.redis_url

    @cached_property
    def keys(self) -> dict[str, ApiKey]:
        """SHA-256 of each key (hex) → its tenant and role. Raises Misconfigured if an entry is malformed."""
        try:
            return keys_of(self.api_keys)
        except ValueError as error:
            raise Misconfigured(f"TOKENCAST_API_KEYS: {error}") from None

    @property
    def tenants(self) -> dict[str, str]:
        """SHA-256 of each key (hex) → its tenant. Raises as `keys`."""
        return {digest: key.tenant for digest, key in self.keys.items()}

    @property
    def own_webhooks(self) -> Mapping[str, OwnWebhooks]:
        return self.tenant_settings

    def check_tenants(self) -> None:
        """Raise Misconfigured if a tenant has settings and no key, or a webhook that cannot be called. Workers may have
        no keys, and then do not check these."""
        if self.tenants:
            try:
                check_keys(self.tenant_settings, dict.fromkeys(self.tenants.values()))
            except ValueError as error:
                raise Misconfigured(f"TOKENCAST_TENANTS: {error}") from None
        try:
            self.check_own_webhooks()
        except ValueError as error:
            raise Misconfigured(f"TOKENCAST_TENANTS.{error}") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls)

"""The settings of the command line's client commands."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from broker.settings.settings import Settings
from broker.settings.upstream_entries import check_key
from broker.settings.urls import check_http_url


class ClientSettings(BaseSettings):
    """Settings of the command line's client commands."""

    model_config = SettingsConfigDict(env_prefix="TOKENCAST_", frozen=True, extra="ignore", env_ignore_empty=True)

    url: str = Field("http://127.0.0.1:8000", description="URL of the gateway that the client commands use")
    api_key: str | None = Field(None, repr=False, description="API key that the client commands send")

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            url = check_http_url(value, example="http://127.0.0.1:8000")
            if url.rstrip("/").endswith("/v1"):
                raise ValueError("must not end with `/v1`: the client commands append it")
            return url
        except ValueError as error:
            hint = "; a password is not accepted, percent-encoded or not: put the key into TOKENCAST_API_KEY"
            hint = hint if "@" in value else ""
            raise ValueError(f"{error}{hint}") from None

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        return None if value is None else check_key(value)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return Settings.settings_customise_sources(settings_cls, *sources, **named)

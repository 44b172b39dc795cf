"""The settings of webhooks, a part of `Settings`."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode

from broker.errors import InvalidRequest
from broker.request.options import WebhookOptions
from broker.webhooks.addresses import check_webhook_url

_PREFIX = "whsec_"
_LEAST, _MOST = 24, 64  # bytes of a key, as Standard Webhooks recommends


class WebhookSettings(BaseSettings):
    """Settings of webhooks. Without a secret there are none: nothing is announced or delivered unsigned."""

    webhook_secret: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Secret that signs webhooks, `whsec_…`, for all processes; several, comma-separated, while it is "
        "replaced; without one there are no webhooks",
    )
    webhook_allow_private: bool = Field(
        False, description="1 = deliver webhooks also to private addresses and over http:"
    )
    webhook_url: str | None = Field(
        None,
        repr=False,
        description="URL to which the end of each generation is announced whose request names no other",
    )

    @field_validator("webhook_secret", mode="before")
    @classmethod
    def _split_secrets(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        secrets = tuple(part.strip() for part in value.replace("\n", ",").split(",") if part.strip())
        if not secrets:
            raise ValueError("contains no secret")
        return secrets

    @field_validator("webhook_secret")
    @classmethod
    def _check_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for secret in value:
            try:
                key = base64.b64decode(secret.removeprefix(_PREFIX).encode("ascii"), validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if not secret.startswith(_PREFIX) or not _LEAST <= len(key) <= _MOST:
                raise ValueError(
                    f"must be `{_PREFIX}` and {_LEAST} to {_MOST} random bytes in base64: "
                    f'`echo "{_PREFIX}$(openssl rand -base64 32)"` makes one'
                )
        return value

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not info.data.get("webhook_secret", ("invalid",)):
            raise ValueError("needs TOKENCAST_WEBHOOK_SECRET, which signs what is sent there")
        return check_webhook_url(value, allow_private=info.data.get("webhook_allow_private", False))

    @property
    def default_webhook(self) -> bytes:
        """The webhook of a generation whose request names none, as its meta hash has it; empty if there is none."""
        return b"" if self.webhook_url is None else msgspec.json.encode(WebhookOptions(self.webhook_url))

    def check_webhook(self, webhook: WebhookOptions | None) -> None:
        """Raises InvalidRequest if a request's webhook cannot be called."""
        if webhook is None:
            return
        if not self.webhook_secret:
            message = "Webhooks are not available: the operator has not set TOKENCAST_WEBHOOK_SECRET."
            raise InvalidRequest(message, param="tokencast.webhook", code="invalid_option")
        try:
            check_webhook_url(webhook.url, allow_private=self.webhook_allow_private)
        except ValueError as error:
            message = f"`tokencast.webhook.url` {error}."
            raise InvalidRequest(message, param="tokencast.webhook.url", code="invalid_option") from None

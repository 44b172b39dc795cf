"""The settings of webhooks, a part of `Settings`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Protocol

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode

from broker.errors import InvalidRequest
from broker.request.options import WebhookEvent, WebhookOptions
from broker.webhooks.addresses import check_webhook_url

_PREFIX = "whsec_"
_LEAST, _MOST = 24, 64  # bytes of a key, as Standard Webhooks recommends


def _split_secrets(value: object) -> object:
    if not isinstance(value, str):
        return value
    secrets = tuple(part.strip() for part in value.replace("\n", ",").split(",") if part.strip())
    if not secrets:
        raise ValueError("contains no secret")
    return secrets


def _check_secrets(value: tuple[str, ...]) -> tuple[str, ...]:
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


Secrets = Annotated[tuple[str, ...], BeforeValidator(_split_secrets), AfterValidator(_check_secrets)]
"""Secrets that sign webhooks, comma-separated in text."""


class TenantWebhook(BaseModel):
    """Where the generations of a tenant are announced whose requests name no webhook."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(min_length=8, max_length=2048)]
    events: Annotated[tuple[WebhookEvent, ...], Field(min_length=1)] = WebhookOptions("").events

    @property
    def options(self) -> WebhookOptions:
        """The same as a request's options."""
        return WebhookOptions(self.url, self.events)


class OwnWebhooks(Protocol):
    """What an entry of TOKENCAST_TENANTS says about webhooks."""

    @property
    def webhook(self) -> TenantWebhook | None: ...
    @property
    def webhook_secret(self) -> tuple[str, ...]: ...


class WebhookSettings(BaseSettings):
    """Settings of webhooks. Without a secret there are none: nothing is announced or delivered unsigned."""

    webhook_secret: Annotated[Secrets, NoDecode] = Field(
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

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not info.data.get("webhook_secret", ("invalid",)):
            raise ValueError("needs TOKENCAST_WEBHOOK_SECRET, which signs what is sent there")
        return check_webhook_url(value, allow_private=info.data.get("webhook_allow_private", False))

    @property
    def own_webhooks(self) -> Mapping[str, OwnWebhooks]:
        """The settings of single tenants, which stand above those of all tenants."""
        return {}

    @property
    def has_webhooks(self) -> bool:
        """Whether any tenant has a secret."""
        return bool(self.webhook_secret) or any(own.webhook_secret for own in self.own_webhooks.values())

    def webhook_secrets_of(self, tenant: str) -> tuple[str, ...]:
        """Return the secrets that sign the webhooks of a tenant; none: it has no webhooks."""
        own = self.own_webhooks.get(tenant)
        return own.webhook_secret if own and own.webhook_secret else self.webhook_secret

    def default_webhook(self, tenant: str) -> bytes:
        """Return the webhook of a generation whose request names none, as its meta hash has it; empty if there is
        none."""
        own = self.own_webhooks.get(tenant)
        if own and own.webhook:
            return msgspec.json.encode(own.webhook.options)
        return b"" if self.webhook_url is None else msgspec.json.encode(WebhookOptions(self.webhook_url))

    def check_own_webhooks(self) -> None:
        """Raise ValueError, beginning with the tenant, if the webhook of a tenant cannot be called or signed."""
        for tenant, own in self.own_webhooks.items():
            if own.webhook is None:
                continue
            if not self.webhook_secrets_of(tenant):
                raise ValueError(f"{tenant}.webhook: needs `webhook_secret`, or TOKENCAST_WEBHOOK_SECRET")
            try:
                check_webhook_url(own.webhook.url, allow_private=self.webhook_allow_private)
            except ValueError as error:
                raise ValueError(f"{tenant}.webhook.url: {error}") from None

    def check_webhook(self, webhook: WebhookOptions | None, tenant: str) -> None:
        """Raises InvalidRequest if the webhook of a tenant's request cannot be called."""
        if webhook is None:
            return
        if not self.webhook_secrets_of(tenant):
            message = "Webhooks are not available: the operator has not set TOKENCAST_WEBHOOK_SECRET."
            raise InvalidRequest(message, param="tokencast.webhook", code="invalid_option")
        try:
            check_webhook_url(webhook.url, allow_private=self.webhook_allow_private)
        except ValueError as error:
            message = f"`tokencast.webhook.url` {error}."
            raise InvalidRequest(message, param="tokencast.webhook.url", code="invalid_option") from None

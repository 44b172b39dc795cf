"""The limits of tenants: the settings for all of them, and TOKENCAST_TENANTS for those with settings of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

from broker.settings.upstream_entries import decode_json
from broker.settings.webhook_settings import Secrets, TenantWebhook

Count = Annotated[int, Field(ge=0, le=2**53, strict=True)] | None


class TenantSettings(BaseModel):
    """An entry of TOKENCAST_TENANTS. A missing limit is that of all tenants; 0 = no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    running: Count = None
    queued: Count = None
    per_minute: Count = None
    bytes: Count = None
    subscribers: Count = None
    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Share of the turns in the queue, relative to other tenants."""
    webhook: TenantWebhook | None = None
    """Stands above TOKENCAST_WEBHOOK_URL."""
    webhook_secret: Secrets = ()
    """Stands above TOKENCAST_WEBHOOK_SECRET."""


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """The limits of one tenant; 0 = no limit. `bytes`: None = a share of Redis's memory."""

    running: int
    queued: int
    per_minute: int
    bytes: int | None
    subscribers: int
    weight: float = 1.0


class TenantGroup(BaseSettings):
    """The settings of tenants, and what is made of them."""

    tenant_running: int = Field(
        20, ge=0, description="Maximum running generations per tenant; 0 = no limit, here and below"
    )
    tenant_queued: int = Field(100, ge=0, description="Maximum waiting generations per tenant")
    tenant_per_minute: int = Field(60, ge=0, description="Maximum new generations per tenant and minute")
    tenant_bytes: int | None = Field(
        None,
        ge=0,
        description="Maximum bytes of stored requests per tenant; default: a quarter of the `maxmemory` of the logs' "
        "Redis, if it has one",
    )
    tenant_subscribers: int = Field(500, ge=0, description="Maximum subscribers per tenant on one gateway")
    generation_subscribers: int = Field(50, ge=0, description="Maximum subscribers per generation on one gateway")
    tenant_settings: Annotated[Mapping[str, TenantSettings], NoDecode] = Field(
        {},
        validation_alias="TOKENCAST_TENANTS",
        repr=False,
        description="Tenants with settings of their own, as JSON: `{tenant: {"
        + ", ".join(f'"{name}"' for name in TenantSettings.model_fields)
        + "}}`: [Limits of tenants](deploying.md#limits-of-tenants)",
    )

    @field_validator("tenant_settings", mode="before")
    @classmethod
    def _decode_tenants(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        decoded = decode_json(value)
        if not isinstance(decoded, dict):
            raise ValueError('must be an object: {"tenant": {"running": …}}')
        return decoded  # pyright: ignore[reportUnknownVariableType]

    def quota_of(self, tenant: str) -> TenantQuota:
        """Return the limits of a tenant that has keys."""
        return self.own_quotas.get(tenant, self._common_quota)

    @cached_property
    def _common_quota(self) -> TenantQuota:
        return TenantQuota(
            self.tenant_running,
            self.tenant_queued,
            self.tenant_per_minute,
            self.tenant_bytes,
            self.tenant_subscribers,
        )

    @cached_property
    def own_quotas(self) -> dict[str, TenantQuota]:
        """The limits of the tenants that have some of their own."""
        common = self._common_quota
        return {
            tenant: TenantQuota(
                running=_first(own.running, common.running),
                queued=_first(own.queued, common.queued),
                per_minute=_first(own.per_minute, common.per_minute),
                bytes=common.bytes if own.bytes is None else own.bytes,
                subscribers=_first(own.subscribers, common.subscribers),
                weight=own.weight,
            )
            for tenant, own in self.tenant_settings.items()
        }


def _first(own: int | None, common: int) -> int:
    return common if own is None else own


_TENANT = re.compile(r"\w{1,64}")


def check_keys(limited: Mapping[str, object], tenants: Mapping[str, object]) -> None:
    """Raise ValueError if a tenant has limits and no key: its name may be misspelled. `tenants`: those with keys."""
    for tenant in limited:
        if tenant not in tenants:
            named = f" `{tenant}`" if _TENANT.fullmatch(tenant) else ""
            raise ValueError(f"the tenant{named} has no key in TOKENCAST_API_KEYS")

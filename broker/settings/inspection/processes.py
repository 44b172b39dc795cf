"""What a gateway or a worker requires of the settings, beyond their being valid."""

from __future__ import annotations

from broker.errors import Misconfigured
from broker.settings.origins import is_loopback
from broker.settings.settings import Settings


def check_open(settings: Settings) -> None:
    """Misconfigured if anyone on the network could use the gateway, or if tenants have limits and no keys."""
    if not settings.tenants and settings.tenant_settings:
        raise Misconfigured("TOKENCAST_TENANTS: a gateway without TOKENCAST_API_KEYS has no tenants")
    if settings.tenants or settings.allow_open:
        return
    if not is_loopback(settings.host):
        raise Misconfigured(
            f"HOST={settings.host} would be open to anyone: set TOKENCAST_API_KEYS, or TOKENCAST_ALLOW_OPEN=1"
        )


def check_usable(settings: Settings) -> None:
    """Misconfigured if a worker could call no upstream."""
    upstreams = settings.all_upstreams()
    if any(upstream.usable for upstream in upstreams):
        return
    missing = sorted({name for upstream in upstreams for name in upstream.missing})
    raise Misconfigured(
        f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set: the worker needs the upstream's "
        "key. `tokencast dev` runs without one, on a simulated upstream."
    )

"""Limits of single tenants, and those of all others."""

from __future__ import annotations

import json
import re

import pytest

from broker.queue.quotas import OPEN_TENANT, TenantLimit, TenantLimits
from broker.settings.loading import load
from broker.settings.settings import Settings
from broker.settings.tenants import TenantQuota, TenantSettings
from tests.support import ROOT


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    own = {"anna": {"running": 50, "bytes": 0, "weight": 2}, "ben": {"queued": 0, "subscribers": 7}}
    monkeypatch.setenv("TOKENCAST_TENANTS", json.dumps(own))
    monkeypatch.setenv("TOKENCAST_TENANT_RUNNING", "3")
    monkeypatch.setenv("TOKENCAST_TENANT_BYTES", "1000")
    return load(Settings)


def test_a_missing_limit_is_that_of_all_tenants(settings: Settings) -> None:
    assert settings.quota_of("anna") == TenantQuota(50, 100, 60, 0, 500, 2.0)
    assert settings.quota_of("ben") == TenantQuota(3, 0, 60, 1000, 7)
    assert settings.quota_of("carla") == TenantQuota(3, 100, 60, 1000, 500)


def test_the_queue_knows_the_limits_of_each_tenant(settings: Settings) -> None:
    limits = TenantLimits.of(settings)
    assert limits.of_tenant("anna") == TenantLimit(50, 100, 60, 2.0)
    assert limits.of_tenant("ben") == TenantLimit(3, 0, 60, 1.0)
    assert limits.of_tenant("carla") == TenantLimit(3, 100, 60, 1.0)
    assert limits.of_tenant(OPEN_TENANT) == TenantLimit(0, 0, 0, 1.0)
    assert json.loads(limits.encode_own()) == {"anna": [50, 2.0], "ben": [3, 1.0]}
    assert TenantLimits().encode_own() == b""


def test_admission_is_needed_where_a_limit_applies() -> None:
    limits = TenantLimits(own={"anna": TenantLimit(0, 5, 0), "ben": TenantLimit(5, 0, 0)})
    assert [limits.needs_admission(tenant) for tenant in ("anna", "ben", "carla")] == [True, False, False]
    others = TenantLimits(queued=1, own={"anna": TenantLimit(0, 0, 0)})
    assert [others.needs_admission(tenant) for tenant in ("anna", "ben", OPEN_TENANT)] == [False, True, False]


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs/deploying.md").read_text("utf-8")
    section = page.partition("\n## Limits of tenants\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(TenantSettings.model_fields)

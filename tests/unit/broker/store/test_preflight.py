"""Findings from INFO and from clock differences, and timeouts that depend on each other."""

from __future__ import annotations

import pytest

from broker.fanout import reader
from broker.settings.settings import Settings
from broker.store.preflight import PATCHED, Finding, findings_from_clocks, findings_from_info
from worker import consumer as main
from worker.appender import Appender

GOOD = {"redis_version": "8.6.3", "maxmemory_policy": "noeviction", "aof_enabled": "1"}


def found(*, durable: bool = True, **info: str) -> list[Finding]:
    return findings_from_info({**GOOD, **info}, durable=durable)


def test_a_suitable_server_has_no_findings() -> None:
    assert found() == []
    assert found(redis_version="7.2.4", valkey_version="9.1.2") == []


@pytest.mark.parametrize("version", ["6.0.20", "5.0.14", "2.8.0"])
def test_an_unsupported_version_is_refused(version: str) -> None:
    [finding] = found(redis_version=version)
    assert finding.fatal
    assert version in finding.message
    assert "6.2" in finding.message


@pytest.mark.parametrize(
    ("version", "valkey", "warned"),
    [
        ("6.2.14", "", True),
        ("6.2.22", "", False),
        ("7.0.15", "", True),
        ("7.2.13", "", True),
        ("7.2.14", "", False),
        ("8.0.4", "", True),
        ("8.6.2", "", True),
        ("8.6.3", "", False),
        ("8.8.0", "", False),
        ("10.0.0", "", False),
        ("7.2.4", "7.2.12", True),
        ("7.2.4", "8.1.7", False),
        ("7.2.4", "9.0.3", True),
        ("7.2.4", "9.0.4", False),
        ("7.2.4", "9.1.0", False),
    ],
)
def test_a_version_with_known_vulnerabilities_is_reported_in_one_line(version: str, valkey: str, warned: bool) -> None:
    findings = found(redis_version=version, **({"valkey_version": valkey} if valkey else {}))
    assert [finding.kind for finding in findings] == ["version"] * warned
    for finding in findings:
        assert not finding.fatal
        assert (valkey or version) in finding.message
        assert "\n" not in finding.message


def test_the_recommended_release_has_no_findings() -> None:
    for name, patched in PATCHED.items():
        (major, minor), patch = max(patched.items())
        versions = {"redis_version": "7.2.4", f"{name.lower()}_version": f"{major}.{minor}.{patch}"}
        assert found(**versions) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"])
def test_every_policy_that_evicts_is_refused(policy: str) -> None:
    """For the queue and for the logs."""
    for durable in (True, False):
        [finding] = found(maxmemory_policy=policy, durable=durable)
        assert finding.fatal
        assert f"maxmemory-policy is {policy}" in finding.message
        assert "CONFIG SET maxmemory-policy noeviction" in finding.message


def test_only_the_server_of_the_logs_needs_persistence() -> None:
    [finding] = found(aof_enabled="0")
    assert (finding.kind, finding.fatal) == ("persistence", False)
    assert found(aof_enabled="0", durable=False) == []


def test_fields_missing_from_info_are_no_findings() -> None:
    assert findings_from_info({}, durable=True) == []
    assert findings_from_info({"redis_version": "unknown", "aof_enabled": ""}, durable=True) == []


def test_only_a_certain_clock_difference_above_a_second_is_reported() -> None:
    assert findings_from_clocks(-0.5, 0.9) == []
    assert findings_from_clocks(0.2, 40.0) == []  # a slow reply leaves the difference uncertain
    assert findings_from_clocks(-40.0, -0.2) == []
    [behind], [ahead] = findings_from_clocks(29.9, 30.1), findings_from_clocks(-30.1, -29.9)
    assert "29.9 s behind" in behind.message
    assert "29.9 s ahead" in ahead.message
    assert behind.kind == ahead.kind


def test_a_blocking_read_ends_before_the_socket_timeout() -> None:
    assert reader.SLACK >= 1
    assert main.BELL_TIMEOUT >= main.BELL_BLOCK + 1


@pytest.mark.parametrize("lease", [0.5, 1, 15, 600])
def test_a_lease_is_renewed_at_least_twice_before_it_expires(lease: float) -> None:
    """It is checked six times and renewed after a third: after half of it at the latest."""
    appender = Appender(Settings(lease=lease))  # pyright: ignore[reportCallIssue]
    assert appender._tick <= lease / 6

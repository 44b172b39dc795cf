"""What is made of INFO and of two clocks, and the periods that must fit into each other."""

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


def test_a_good_server_is_passed_over_in_silence() -> None:
    assert found() == []
    assert found(redis_version="7.2.4", valkey_version="9.1.2") == []


@pytest.mark.parametrize("version", ["6.0.20", "5.0.14", "2.8.0"])
def test_an_old_server_is_refused(version: str) -> None:
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
def test_a_server_with_known_holes_is_named_in_one_line(version: str, valkey: str, warned: bool) -> None:
    findings = found(redis_version=version, **({"valkey_version": valkey} if valkey else {}))
    assert [finding.kind for finding in findings] == ["version"] * warned
    for finding in findings:
        assert not finding.fatal
        assert (valkey or version) in finding.message
        assert "\n" not in finding.message


def test_the_release_that_is_recommended_is_itself_passed() -> None:
    for name, patched in PATCHED.items():
        (major, minor), patch = max(patched.items())
        versions = {"redis_version": "7.2.4", f"{name.lower()}_version": f"{major}.{minor}.{patch}"}
        assert found(**versions) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"])
def test_every_policy_that_evicts_is_refused(policy: str) -> None:
    """With and without a limit, and for the queue as for the logs."""
    for durable in (True, False):
        [finding] = found(maxmemory_policy=policy, durable=durable)
        assert finding.fatal
        assert f"maxmemory-policy is {policy}" in finding.message
        assert "CONFIG SET maxmemory-policy noeviction" in finding.message


def test_only_the_logs_server_needs_a_file() -> None:
    [finding] = found(aof_enabled="0")
    assert (finding.kind, finding.fatal) == ("persistence", False)
    assert found(aof_enabled="0", durable=False) == []


def test_what_a_compatible_server_does_not_tell_is_not_held_against_it() -> None:
    assert findings_from_info({}, durable=True) == []
    assert findings_from_info({"redis_version": "unknown", "aof_enabled": ""}, durable=True) == []


def test_a_clock_is_wrong_only_by_more_than_a_second_for_certain() -> None:
    assert findings_from_clocks(-0.5, 0.9) == []
    assert findings_from_clocks(0.2, 40.0) == []  # the answer took its time
    assert findings_from_clocks(-40.0, -0.2) == []
    [behind], [ahead] = findings_from_clocks(29.9, 30.1), findings_from_clocks(-30.1, -29.9)
    assert "29.9 s behind" in behind.message
    assert "29.9 s ahead" in ahead.message
    assert behind.kind == ahead.kind


def test_a_blocking_read_ends_before_its_socket_gives_up() -> None:
    assert reader.SLACK >= 1
    assert main.BELL_TIMEOUT >= main.BELL_BLOCK + 1


@pytest.mark.parametrize("lease", [0.5, 1, 15, 600])
def test_a_lease_is_renewed_at_least_twice_before_it_runs_out(lease: float) -> None:
    """Looked at six times in it, and renewed as soon as a third is over: after a half of it at the latest."""
    appender = Appender(Settings(lease=lease))  # pyright: ignore[reportCallIssue]
    assert appender._tick <= lease / 6

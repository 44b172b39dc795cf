"""Redis URLs: what they name, what is wrong with them, and what of them may stand in a log."""

from __future__ import annotations

import pytest

from broker.address import Address, parse_address, without_password
from broker.cluster import redirection_of, slot_of
from broker.errors import Misconfigured
from broker.ids import SHARDS
from broker.settings import Settings, load


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", Address("server", (("h", 1),), False, {"db": 2})),
        ("redis://", Address("server", (("localhost", 6379),), False, {})),
        ("unix:///run/x.sock?db=1", Address("server", (), False, {"path": "/run/x.sock", "db": 1})),
        (
            "rediss://u:p%40@h?ssl_cert_reqs=none",
            Address("server", (("h", 6379),), True, {"username": "u", "password": "p@", "ssl_cert_reqs": "none"}),
        ),
        (
            "redis+sentinel://u:p@a,b:2,[::1]:3/logs/4?sentinel_username=su&sentinel_password=sp",
            Address(
                "sentinel",
                (("a", 26379), ("b", 2), ("::1", 3)),
                False,
                {"username": "u", "password": "p", "db": 4},
                "logs",
                ("su", "sp"),
            ),
        ),
        (
            "rediss+cluster://:p@a,b:2?ssl_ca_certs=/ca.pem",
            Address("cluster", (("a", 6379), ("b", 2)), True, {"password": "p", "ssl_ca_certs": "/ca.pem"}),
        ),
    ],
)
def test_what_a_url_names(url: str, expected: Address) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://u:s3cret@h", "begins with"),
        ("redis+tls://u:s3cret@h", "begins with"),
        ("redis+sentinel://u:s3cret@h:1", "service is missing"),
        ("redis+sentinel://u:s3cret@/logs", "names no host"),
        ("redis+cluster://u:s3cret@h:1/3", "one database"),
        ("redis+cluster://u:s3cret@h:port", "Port"),
        ("redis://u:s3cret@h/0?nonsense=1", "there is no option nonsense"),
        ("redis+sentinel://u:s3cret@h/logs?nonsense=1", "there is no option nonsense"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_STREAMS_URL", url)
    with pytest.raises(Misconfigured, match=f"^TOKENCAST_STREAMS_URL: .*{why}") as caught:
        load(Settings)
    assert "s3cret" not in caught.value.message


def test_the_queue_is_on_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis+cluster://h:1")
    with pytest.raises(Misconfigured, match="REDIS_URL: the queue cannot be on a Redis Cluster; set it"):
        load(Settings)
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://h:1/queue")
    monkeypatch.setenv("TOKENCAST_STREAMS_URL", "redis+cluster://h:1")
    assert load(Settings).logs_url == "redis+cluster://h:1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:p@h:1/0", "redis://***@h:1/0"),
        (
            "redis+sentinel://:p@a:1,b:2/logs?sentinel_password=sp",
            "redis+sentinel://***@a:1,b:2/logs?sentinel_password=***",
        ),
    ],
)
def test_no_password_stands_in_a_log(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_each_shard_is_a_slot_of_its_own() -> None:
    assert len({slot_of(shard) for shard in SHARDS}) == 32
    assert slot_of("tc:{10}:m:gen_x") == slot_of("10")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("MOVED", ("127.0.0.1", 6381))),
        ("ASK 3999 ::1:6381", ("ASK", ("::1", 6381))),
        ("MOVED 3999 :6381", None),
        ("CLUSTERDOWN Hash slot not served", None),
    ],
)
def test_redirections(error: str, expected: tuple[str, tuple[str, int]] | None) -> None:
    assert redirection_of(Exception(error)) == expected

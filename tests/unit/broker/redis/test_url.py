"""Redis URLs: parsing, error messages, and masking of passwords."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.errors import Misconfigured
from broker.ids import SHARDS
from broker.redis.cluster import slot_of
from broker.redis.errors import redirection_of
from broker.redis.url import RedisUrl, parse_redis_url, without_password
from broker.settings.loading import load
from broker.settings.settings import Settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", RedisUrl("server", (("h", 1),), db=2)),
        ("redis://", RedisUrl("server", (("localhost", 6379),))),
        ("redis://H/?db=3&client_name=a%20b", RedisUrl("server", (("h", 6379),), db=3, client_name="a b")),
        ("redis://[::1]:7/0?socket_connect_timeout=0.5", RedisUrl("server", (("::1", 7),), connect_timeout=0.5)),
        ("redis://h?username=u&password=a%26b", RedisUrl("server", (("h", 6379),), username="u", password="a&b")),
        ("unix:///run/x.sock?db=1", RedisUrl("server", path="/run/x.sock", db=1)),
        ("unix://u:p@/run/x@y.sock", RedisUrl("server", path="/run/x@y.sock", username="u", password="p")),
        (
            "rediss://u:p%40@h?ssl_cert_reqs=none",
            RedisUrl("server", (("h", 6379),), username="u", password="p@"),
        ),
        ("redis://:p@ss:w%23@h", RedisUrl("server", (("h", 6379),), password="p@ss:w#")),
        (
            "redis+sentinel://u:p@a,b:2,[::1]:3/logs/4?sentinel_username=su&sentinel_password=sp",
            RedisUrl(
                "sentinel",
                (("a", 26379), ("b", 2), ("::1", 3)),
                db=4,
                username="u",
                password="p",
                service="logs",
                sentinel_username="su",
                sentinel_password="sp",
            ),
        ),
        ("rediss+cluster://:p@a,b:2", RedisUrl("cluster", (("a", 6379), ("b", 2)), password="p")),
    ],
)
def test_a_url_is_parsed(url: str, expected: RedisUrl) -> None:
    address = parse_redis_url(url)
    assert address == expected
    assert (address.tls is not None) == url.startswith("rediss")
    assert "p@" not in repr(address)
    assert "sp" not in repr(address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://u:s3cret@h", "begins with"),
        ("u:s3cret@h:6379/0", "begins with"),
        ("redis+tls://u:s3cret@h", "begins with"),
        ("redis+sentinel://u:s3cret@h:1", "service is missing"),
        ("redis+sentinel://u:s3cret@/logs", "at least one host"),
        ("redis+cluster://u:s3cret@h:1/3", "one database"),
        ("redis+cluster://u:s3cret@h:port", "host and port|port from 1"),
        ("redis://u:s3cret@h:0", "port from 1"),
        ("redis://u:s3cret@h:70000/0", "port from 1"),
        ("redis://u:s3cret@a,b/0", "host:port"),
        ("redis://u:s3cret@h/abc", "a database must be a number"),
        ("redis://u:s3cret@h/-1", "a database must be a number"),
        ("redis://u:s3cret@h/0/1", "number of a database"),
        ("redis://u:s3cret@h/1?db=2", "different databases"),
        ("redis://u:s3cret@h?db=x", "a database must be a number"),
        ("redis+sentinel://u:s3cret@h/logs/abc", "a database must be a number"),
        ("unix://u:s3cret@", "absolute path"),
        ("redis://u:s3cret@h/0?socket_connect_timeout=soon", "socket_connect_timeout must be a number of seconds"),
        ("redis://u:s3cret@h/0?client_name=", "client_name has no value"),
        ("redis://u:s3cret@h/0?db=1&db=1", "db occurs twice"),
        ("redis://u:s3cret@h/0?ssl_ca_certs=/ca.pem", "ssl_ca_certs requires TLS"),
        ("redis://u:s3cret@h/0?sentinel_password=s3cret", "unknown option sentinel_password"),
        *(
            (f"{scheme}://u:s3cret@h/{service}?{name}=1", f"unknown option {name}")
            for scheme, service in (("redis", "0"), ("rediss", "0"), ("redis+sentinel", "logs"), ("redis+cluster", ""))
            for name in ("nonsense", "decode_responses", "protocol", "encoding", "retry_on_timeout", "socket_timeout")
        ),
        *(
            (f"rediss://u:s3cret@h/0?{name}=1", f"unknown option {name}")
            for name in ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl", "max_connections", "connection_class")
        ),
    ],
)
def test_an_invalid_url_is_reported_without_its_password(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENCAST_STREAMS_URL", url)
    with pytest.raises(Misconfigured, match=f"^TOKENCAST_STREAMS_URL: .*({why})") as caught:
        load(Settings)
    assert "s3cret" not in caught.value.message
    assert "s3cret" not in without_password(url)


UNENCODED = [
    "Hunter2#tail",
    "Hunter2/tail",
    "Hunter2?tail",
    "Hunter2?tail=x",
    "Hun[ter2/tail",
    "Hun@ter2/tail",
    "Hunter2 x",
]


@pytest.mark.parametrize("secret", UNENCODED)
@pytest.mark.parametrize(
    "form",
    [
        "redis://:{}@127.0.0.1:6379/0",
        "rediss://u:{}@127.0.0.1:6379/0?ssl_cert_reqs=none",
        "redis+sentinel://u:{}@a:26379/logs",
        "redis+sentinel://a:26379/logs?sentinel_password={}&sentinel_username=u",
        "redis+cluster://u:{}@a,b",
        "redis://127.0.0.1/0?password={}@",
        "unix://:{}@/run/redis.sock",
    ],
)
@pytest.mark.parametrize("variable", ["REDIS_URL", "TOKENCAST_STREAMS_URL", "REDIS_URL_FILE"])
def test_a_password_that_is_not_encoded_is_refused_with_a_hint(
    variable: str, form: str, secret: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In whatever way the URL is parsed, no byte of the password is shown."""
    url = form.format(secret)
    if variable.endswith("_FILE"):
        (tmp_path / "url").write_text(url)
    monkeypatch.setenv(variable, str(tmp_path / "url") if variable.endswith("_FILE") else url)
    try:
        address = parse_redis_url(url)
    except ValueError:
        with pytest.raises(Misconfigured, match=f"^{variable.removesuffix('_FILE')}: .*percent-encode") as caught:
            load(Settings)
        shown = caught.value.message
    else:  # in this URL the character is valid
        assert secret in (address.password, address.sentinel_password)
        shown = repr(address)
    for part in re.split(r"\W", secret):
        assert len(part) < 2 or part not in shown + without_password(url)


def test_a_validation_error_does_not_show_the_url() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(REDIS_URL="redis://:Hunter2#tail@h")  # pyright: ignore[reportCallIssue]
    assert "Hunter2" not in str(caught.value)


def test_the_queue_cannot_be_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis+cluster://h:1")
    with pytest.raises(Misconfigured, match="REDIS_URL: the queue cannot be on a Redis Cluster; use a"):
        load(Settings)
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://h:1/queue")
    monkeypatch.setenv("TOKENCAST_STREAMS_URL", "redis+cluster://h:1")
    assert load(Settings).logs_url == "redis+cluster://h:1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:p@h:1/0", "redis://***@h:1/0"),
        ("redis://h?password=p&db=1", "redis://h?password=***&db=1"),
        ("unix://:p@/run/x.sock", "unix://***@/run/x.sock"),
        ("unix://:p/x@/run/x.sock", "unix://***"),
        ("redis://u:p", "redis://***"),
        ("http://u:p@h/v1", "http://***@h/v1"),
        (
            "redis+sentinel://:p@a:1,b:2/logs?sentinel_password=sp",
            "redis+sentinel://***@a:1,b:2/logs?sentinel_password=***",
        ),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_each_shard_has_its_own_slot() -> None:
    assert len({slot_of(shard) for shard in SHARDS}) == 32
    assert slot_of("tc:{10}:m:gen_x") == slot_of("10")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("MOVED", ("127.0.0.1", 6381))),
        ("ASK 3999 ::1:6381", ("ASK", ("::1", 6381))),
        ("MOVED 3999 :6381", ("MOVED", ("10.0.0.7", 6381))),
        ("ASK 3999 ?:6381", ("ASK", ("10.0.0.7", 6381))),
        ("CLUSTERDOWN Hash slot not served", None),
    ],
)
def test_redirections(error: str, expected: tuple[str, tuple[str, int]] | None) -> None:
    """A redirection without a host refers to the host that sent it."""
    assert redirection_of(Exception(error), ("10.0.0.7", 6379)) == expected

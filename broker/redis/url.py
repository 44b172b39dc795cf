"""Parse Redis URLs: the servers they name, and the options of connections to them.

    redis://  rediss://  unix://                                  one server
    redis+sentinel://[user:password@]host[:26379],…/service[/db]  the master that Sentinel names
    redis+cluster://[user:password@]host[:6379],…                 a Redis Cluster, given some of its nodes

`rediss+…` is the same over TLS, including the sentinels. Schemes and lists of hosts follow the `limits` package, option
names follow redis-py. An option either means the same for every kind of connection, or is rejected with its name in the
message: OPTIONS and broker/redis/tls.py list all options.

A password that is not percent-encoded shifts the borders between the parts of a URL. Error messages therefore never
repeat any text of the URL that may be part of a password.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, unquote_plus

from broker.redis.tls import OPTIONS as TLS_OPTIONS
from broker.redis.tls import tls_context

Node = tuple[str, int]
"""Host and port."""
Kind = Literal["server", "sentinel", "cluster"]

CONNECT_TIMEOUT = 2.0  # seconds
OPTIONS = ("db", "username", "password", "client_name", "socket_connect_timeout")
SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_SECRET = frozenset({"username", "password", "sentinel_username", "sentinel_password", "ssl_password"})
_SCHEMES = frozenset(
    {"redis", "rediss", "unix", "http", "https"}
    | {f"{scheme}+{kind}" for scheme in ("redis", "rediss") for kind in ("sentinel", "cluster")}
)
_DEFAULT_PORT = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Za-z:.%]+)\]|(?P<name>[\w.-]*))(?::(?P<port>[0-9]{1,5}))?")
_ENCODE = (
    "percent-encode special characters in names and passwords: # as %23, / as %2F, ? as %3F, @ as %40, : as %3A, "
    "% as %25"
)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """`nodes`: the server itself, the sentinels, or some nodes of the cluster; empty for a unix socket, which has a
    `path` instead. `connect_timeout`: seconds for TCP connection, TLS handshake and login together."""

    kind: Kind
    nodes: tuple[Node, ...] = ()
    path: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    client_name: str | None = None
    connect_timeout: float = CONNECT_TIMEOUT
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)
    service: str = ""
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)


def parse_redis_url(url: str) -> RedisUrl:
    """Parse a URL, and read the files that its TLS options name. The message of a ValueError contains no secret."""
    scheme, kind, login, hosts, path, query = _split(url)
    username, password = _login(login)
    options = _options(query, secure=scheme == "rediss", kind=kind)
    service, db = _path(kind, path) if scheme != "unix" else ("", None)
    return RedisUrl(
        kind,
        () if scheme == "unix" else _nodes(kind, hosts),
        path=_decoded(path) if scheme == "unix" else "",
        db=_database(db, options.get("db"), kind),
        username=username or options.get("username"),
        password=password or options.get("password"),
        client_name=options.get("client_name"),
        connect_timeout=_seconds("socket_connect_timeout", options.get("socket_connect_timeout")),
        tls=tls_context({name: options[name] for name in options if name in TLS_OPTIONS})
        if scheme == "rediss"
        else None,
        service=service,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def without_password(url: str) -> str:
    """Return the URL, of Redis or another server, without its secrets; only the scheme of a URL that cannot be
    parsed."""
    scheme, separator, _ = url.partition("://")
    unreadable = f"{scheme}://***" if scheme in _SCHEMES else "***"
    try:
        netloc, path, query = _check_borders(url)
    except ValueError:
        return unreadable
    _, at, hosts = netloc.rpartition("@")
    meant = separator and all(_HOST.fullmatch(host) for host in hosts.split(","))
    if not meant or (scheme == "unix" and hosts):
        return unreadable
    options = "&".join(_shown(part) for part in query.split("&") if part)
    return f"{scheme}://{'***@' if at else ''}{hosts}{path}{'?' if options else ''}{options}"


# --- the parts of a URL ----------------------------------------------------------------------------------


def _split(url: str) -> tuple[str, Kind, str, str, str, str]:
    """Return scheme without kind, kind, login, hosts, path and query; no part is decoded."""
    scheme, separator, _ = url.partition("://")
    transport, _, kind = scheme.lower().partition("+")
    several = kind in ("sentinel", "cluster") and transport in ("redis", "rediss")
    if not separator or not (several or (transport in ("redis", "rediss", "unix") and not kind)):
        raise ValueError("a Redis URL begins with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://")
    netloc, path, query = _check_borders(url)
    login, _, hosts = netloc.rpartition("@")
    if transport == "unix" and (hosts or path in ("", "/")):
        raise ValueError(
            f"unix:// must be followed by the absolute path of a socket, as in unix:///run/redis.sock; {_ENCODE}"
        )
    named: Kind = "sentinel" if kind == "sentinel" else "cluster" if kind == "cluster" else "server"
    return transport, named, login, hosts, path, query


def _check_borders(url: str) -> tuple[str, str, str]:
    """Return network location, path and query. ValueError if a character shows that the URL was not split as
    intended."""
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("it contains whitespace or a control character; remove or percent-encode it")
    if "#" in url:
        raise ValueError(f"it contains a #, which would end the URL; {_ENCODE}")
    scheme, _, rest = url.partition("://")
    location, _, query = rest.partition("?")
    netloc, slash, path = location.partition("/")
    if "@" in query or ("@" in path and scheme.lower() != "unix"):
        raise ValueError(f"it contains an @ after the first / or ?; {_ENCODE}")
    return netloc, slash + path, query


def _login(login: str) -> tuple[str | None, str | None]:
    username, _, password = login.partition(":")
    return _decoded(username) or None, _decoded(password) or None


def _nodes(kind: Kind, hosts: str) -> tuple[Node, ...]:
    if kind == "server":
        return (_node(hosts, _DEFAULT_PORT[kind]),)
    nodes = tuple(_node(host, _DEFAULT_PORT[kind]) for host in hosts.split(",") if host)
    if not nodes:
        raise ValueError(f"redis+{kind}:// must be followed by at least one host")
    return nodes


def _node(text: str, default_port: int) -> Node:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or default_port) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError(f"its host is not valid: it must be host or host:port, with a port from 1 to 65535; {_ENCODE}")
    return (found["v6"] or found["name"] or "localhost").lower(), port


def _path(kind: Kind, path: str) -> tuple[str, str | None]:
    """Return service, and database if the path contains one."""
    first, _, rest = path.strip("/").partition("/")
    if kind == "sentinel":
        if not first:
            raise ValueError("the name of the service is missing, as in redis+sentinel://host:26379,…/service")
        return _decoded(first), rest or None
    if rest:
        raise ValueError(f"its path must be the number of a database, as in redis://host:6379/0; {_ENCODE}")
    return "", first or None


def _database(path: str | None, option: str | None, kind: Kind) -> int:
    numbers = {text for text in (path, option) if text is not None}
    if not all(text.isascii() and text.isdigit() and len(text) < 10 for text in numbers):
        where = "…/service/0" if kind == "sentinel" else "redis://host:6379/0"
        raise ValueError(f"a database must be a number, as in {where}; {_ENCODE}")
    databases = {int(text) for text in numbers}
    if len(databases) > 1:
        raise ValueError("its path and its option db name different databases")
    if kind == "cluster" and databases - {0}:
        raise ValueError("a Redis Cluster has only one database, 0")
    return databases.pop() if databases else 0


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"its percent-encoded text is not UTF-8; {_ENCODE}") from None


# --- options ---------------------------------------------------------------------------------------------


def _options(query: str, *, secure: bool, kind: Kind) -> dict[str, str]:
    known = {*OPTIONS, *TLS_OPTIONS, *(SENTINEL_OPTIONS if kind == "sentinel" else ())}
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, encoded = part.partition("=")
        if name not in known:
            raise ValueError(f"unknown option {name}" if _harmless(name, options) else _NO_SUCH_OPTION)
        if not equals or not encoded:
            raise ValueError(f"the option {name} has no value; {_ENCODE}, and & as %26")
        if name in options:
            raise ValueError(f"the option {name} occurs twice")
        if name in TLS_OPTIONS and not secure:
            raise ValueError(f"the option {name} requires TLS (rediss://)")
        try:
            options[name] = unquote_plus(encoded, errors="strict")
        except UnicodeDecodeError:
            raise ValueError(f"the option {name} is not UTF-8; {_ENCODE}") from None
    return options


_NO_SUCH_OPTION = f"one of its options is unknown; {_ENCODE}, & as %26"


def _harmless(name: str, options: dict[str, str]) -> bool:
    """Return whether an option's name may be shown: text after a password may be the rest of the password."""
    return re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None and not _SECRET & options.keys()


def _seconds(name: str, text: str | None) -> float:
    if text is None:
        return CONNECT_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ValueError(f"the option {name} must be a number of seconds")
    return seconds


def _shown(part: str) -> str:
    name, _, value = part.partition("=")
    return f"{name}={'***' if 'password' in name or name in _SECRET else '…' if len(value) > 200 else value}"

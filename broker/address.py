"""A Redis URL, read: which servers it names, and how one speaks to them.

    redis://  rediss://  unix://                                  one server
    redis+sentinel://[user:password@]host[:26379],…/service[/db]  the master that the sentinels name
    redis+cluster://[user:password@]host[:6379],…                 a Redis Cluster, by some of its nodes

`rediss+…` is the same over TLS, the sentinels too; `ssl_ca_certs=…` and the like are parameters, as are
`sentinel_username` and `sentinel_password`. Schemes and the list of hosts are those of the `limits` package.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

Node = tuple[str, int]
"""Host and port."""


@dataclass(frozen=True, slots=True)
class Address:
    """`nodes` are the server itself, the sentinels, or some nodes of the cluster; a unix socket has `path` among the
    options instead. The options are those of the library's connections: username, password, db, ssl_…"""

    kind: Literal["server", "sentinel", "cluster"]
    nodes: tuple[Node, ...]
    secure: bool
    options: dict[str, Any]
    service: str = ""
    sentinel_login: tuple[str | None, str | None] = (None, None)


def parse_address(url: str) -> Address:
    """ValueError says what is wrong, without the URL, which may hold a password."""
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    if kind in ("sentinel", "cluster") and scheme in ("redis", "rediss"):
        return _several(url, kind, scheme)
    if kind or scheme not in ("redis", "rediss", "unix"):
        raise ValueError("a Redis URL begins with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://")
    options: dict[str, Any] = dict(parse_url(url))
    options.pop("connection_class", None)
    _check(options, secure=scheme == "rediss")
    node = (options.pop("host", "localhost"), options.pop("port", 6379))
    return Address("server", () if "path" in options else (node,), scheme == "rediss", options)


def _several(url: str, kind: Literal["sentinel", "cluster"], scheme: str) -> Address:
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",") if host)
    service, _, db = parts.path.strip("/").partition("/")
    query = dict(parse_qsl(parts.query))
    sentinel_login = (query.pop("sentinel_username", None), query.pop("sentinel_password", None))
    if not nodes:
        raise ValueError(f"redis+{kind}:// names no host")
    if kind == "sentinel" and not service:
        raise ValueError("redis+sentinel://host:26379,…/service: the name of the service is missing")
    if kind == "cluster" and parts.path.strip("/") not in ("", "0"):
        raise ValueError("a Redis Cluster has one database, 0")
    # The library reads the rest: as if it were one server's.
    one = urlunsplit((scheme, f"{login}{at}localhost", f"/{db}" if kind == "sentinel" else "", urlencode(query), ""))
    options = parse_address(one).options
    return Address(kind, nodes, scheme == "rediss", options, unquote(service), sentinel_login)


def _check(options: dict[str, Any], *, secure: bool) -> None:
    """What the library does not know it says only when it connects, and not as an error of the URL's."""
    connection = UnixDomainSocketConnection if "path" in options else SSLConnection if secure else Connection
    known: set[str] = set()
    for kind in connection.__mro__:
        known.update(inspect.signature(kind.__init__).parameters)
    for name in options.keys() - known:
        raise ValueError(f"there is no option {name}")


def _node(host: str, default_port: int) -> Node:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "localhost", parts.port or default_port


def without_password(url: str) -> str:
    """The URL as it may stand in a log."""
    parts = urlsplit(url)
    _, at, hosts = parts.netloc.rpartition("@")
    query = [(name, "***" if "password" in name else value) for name, value in parse_qsl(parts.query)]
    if not at and "***" not in dict(query).values():
        return url
    netloc = f"***@{hosts}" if at else hosts
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query, safe="*")))

"""Listening sockets of gateways and workers."""

from __future__ import annotations

import socket

from broker.errors import Misconfigured


def bound_socket(host: str, port: int, variables: str, *, spread: bool = False) -> socket.socket:
    """Return a TCP socket bound to an address, for `listen()`. `::` means every address of both families.

    `spread`: share the port with other sockets; the kernel distributes the connections. Raises Misconfigured with the
    address, the reason and the names of the `variables` that set the address.
    """
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            _prepare(sock, spread=spread)
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        where = f"{shown(host)}:{port}"
        raise Misconfigured(f"cannot listen on {where}: {error.strerror}; set {variables} to choose another") from None
    return sock


def _prepare(sock: socket.socket, *, spread: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # the system's default can be IPv6 only
    if spread:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def shown(host: str) -> str:
    """Return a host as written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host

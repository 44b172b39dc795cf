"""Ignores offers of another protocol (`Upgrade`, RFC 9110 §7.8): `curl --http2` and Java's HttpClient make one with the
first request of each connection.

The parser treats an offer as accepted: it ends the request after its head and ignores what follows. So it is given the
head again without the offer, and then the rest.
"""

from __future__ import annotations

from typing import cast

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def comes_again(protocol: HttpToolsProtocol) -> bool:
    """Return whether the current request offers an upgrade; its head is then parsed again. CONNECT ends the parser's
    work in the same way, but offers nothing."""
    parser = _parser(protocol)
    return parser.should_upgrade() and parser.get_method() != b"CONNECT"


def feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """Feed data to the protocol's parser. Raises HttpParserError."""
    while data:
        try:
            _parser(protocol).feed_data(data)
        except HttpParserUpgrade as offer:
            rest = data[int(offer.args[0]) :]
            data = _head(protocol) + rest if comes_again(protocol) else rest
        else:
            return


def _head(protocol: HttpToolsProtocol) -> bytes:
    """Return the head that was parsed last, without the offer."""
    parser = _parser(protocol)
    method, version = parser.get_method(), parser.get_http_version().encode()
    headers = b"".join(b"%b: %b\r\n" % header for header in protocol.headers if header[0] != b"upgrade")
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, protocol.url, version, headers)


def _parser(protocol: HttpToolsProtocol) -> HttpRequestParser:
    return cast("HttpRequestParser", protocol.parser)

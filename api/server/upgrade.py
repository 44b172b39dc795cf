"""Ignores offers of another protocol (`Upgrade`, RFC 9110 §7.8): `curl --http2` and Java's HttpClient make one with the
first request of each connection.

The parser takes an offer as accepted: it ends the request behind its head, and what follows is none of its business. So
it is given the head once more, without the offer, and then the rest.
"""

from __future__ import annotations

from typing import cast

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def comes_again(protocol: HttpToolsProtocol) -> bool:
    """Return whether the request that the parser is at makes an offer; then its head is given once more. CONNECT ends
    the parser's work in the same way, but offers nothing."""
    parser = _parser(protocol)
    return parser.should_upgrade() and parser.get_method() != b"CONNECT"


def feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """Let the protocol's parser have the data. HttpParserError."""
    while data:
        try:
            _parser(protocol).feed_data(data)
        except HttpParserUpgrade as offer:
            rest = data[int(offer.args[0]) :]
            data = _head(protocol) + rest if comes_again(protocol) else rest
        else:
            return


def _head(protocol: HttpToolsProtocol) -> bytes:
    """The head that was parsed last, without the offer."""
    parser = _parser(protocol)
    method, version = parser.get_method(), parser.get_http_version().encode()
    headers = b"".join(b"%b: %b\r\n" % header for header in protocol.headers if header[0] != b"upgrade")
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, protocol.url, version, headers)


def _parser(protocol: HttpToolsProtocol) -> HttpRequestParser:
    return cast("HttpRequestParser", protocol.parser)

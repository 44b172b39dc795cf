"""The guard of an open gateway: it serves programs on its machine and its own pages, but no pages of other sites.

Without API keys, anyone who can reach the gateway may use it, and a browser on this machine extends that to every page
it shows. So each request is checked first:

- `Host` is a loopback name or address, the value of HOST, or listed in TOKENCAST_ALLOWED_HOSTS. Any other name may be
  one that an attacker's DNS points at this machine (DNS rebinding). With TOKENCAST_ALLOW_OPEN an IP address is accepted
  too, since DNS cannot redirect it; and clients that are not browsers may use any name.
- `Origin` is the gateway's own or listed in TOKENCAST_CORS_ORIGINS, and `Sec-Fetch-Site` names no other site. Links to
  the gateway's pages may be followed from anywhere.
- A body is declared as JSON by its `Content-Type`: a page of another site cannot send that without a preflight request
  (Fetch, CORS-safelisted request headers). From clients that are not browsers, the types that `curl -d` sends are
  accepted too.

With API keys none of this is needed: a page has to know one.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import JSONResponse, error_response
from broker.settings.origins import (
    DEFAULT_PORTS,
    address_of,
    is_loopback,
    normalize_host,
    normalize_origin,
    parse_authority,
)
from broker.settings.settings import Settings

_JSON = frozenset({"application/json", "text/json", "application/x-ndjson", "application/ndjson", "application/jsonl"})
_PAGES = frozenset({"/", "/docs", "/openapi.json", "/favicon.ico"})
_OWN_SITE = frozenset({None, "same-origin", "none"})
"""`Sec-Fetch-Site` of requests by our own pages or by the user in the address bar; None: no such header."""
_FORM = frozenset({"", "application/x-www-form-urlencoded"})
"""Content types of `curl -d`, and of clients that send none."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed. `hosts` are names and addresses, `domains` are suffixes of names (`.example`), `anywhere` is
    TOKENCAST_ALLOW_OPEN."""

    hosts: frozenset[str]
    domains: tuple[str, ...]
    origins: frozenset[str]
    anywhere: bool

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        patterns = settings.allowed_hosts
        names = {pattern for pattern in patterns if not pattern.startswith("*")}
        return cls(
            hosts=frozenset({*names, *_own_name(settings.host)}),
            domains=tuple(pattern[1:] for pattern in patterns if pattern.startswith("*")),
            origins=frozenset(settings.cors_origins),
            anywhere=settings.allow_open,
        )

    def knows_host(self, host: str) -> bool:
        if is_loopback(host) or host in self.hosts or host.endswith(self.domains):
            return True
        return self.anywhere and address_of(host) is not None

    def lists_origin(self, origin: str) -> bool:
        return "*" in self.origins or _normal(origin) in self.origins


def _own_name(host: str) -> tuple[str, ...]:
    try:
        return (normalize_host(host),)
    except ValueError:
        return ()


class Guard:
    """The middleware. Not a coroutine itself: that would be one more stack frame per subscriber."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        refused = None
        if scope["type"] == "http":
            refused = refusal(self._policy, scope["method"], scope["path"], Headers(scope=scope))
        return (refused or self._app)(scope, receive, send)


def refusal(policy: Policy, method: str, path: str, headers: Headers) -> JSONResponse | None:
    """Return the response to a request that an open gateway must not serve; None if it may. Paths that end with a slash
    match no route; the router's 404 is the better response for them."""
    if path.endswith("/") and path != "/":
        return None
    return (
        _host_refusal(policy, headers)
        or _site_refusal(policy, method, path, headers)
        or _body_refusal(method, headers)
    )  # fmt: skip


def is_browser(headers: Headers) -> bool:
    """Return whether a browser sent this. Over plain HTTP and under other names than localhost, browsers omit both
    `Origin` and `Sec-Fetch-Site` in a same-origin GET, so the User-Agent counts too."""
    named = headers.get("user-agent", "").startswith("Mozilla/")
    return named or "origin" in headers or "sec-fetch-site" in headers


STATUS = {
    "host_not_allowed": HTTPStatus.FORBIDDEN,
    "origin_not_allowed": HTTPStatus.FORBIDDEN,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}


def _refuse(code: str, param: str, message: str) -> JSONResponse:
    return error_response(STATUS[code], message, code, param)


def _host_refusal(policy: Policy, headers: Headers) -> JSONResponse | None:
    hosts = headers.getlist("host")
    if not is_browser(headers) and (policy.anywhere or not hosts):
        return None
    authority = parse_authority(hosts[0]) if len(hosts) == 1 else None
    if authority is not None and policy.knows_host(authority.host):
        return None
    return _refuse(
        "host_not_allowed",
        "host",
        f"`{', '.join(hosts)[:100]}` is not a host name of this gateway. Without API keys it accepts localhost"
        f"{', its IP addresses' if policy.anywhere else ''} and the names in TOKENCAST_ALLOWED_HOSTS.",
    )


def _site_refusal(policy: Policy, method: str, path: str, headers: Headers) -> JSONResponse | None:
    origins, site = headers.getlist("origin"), _only(headers, "sec-fetch-site")
    if len(origins) == 1:
        own = site in _OWN_SITE and _is_own(origins[0], headers.get("host", ""), vouched=site == "same-origin")
        if own or policy.lists_origin(origins[0]):
            return None
    elif not origins and (site in _OWN_SITE or _is_visit(method, path, headers)):
        return None
    page = f"Pages of `{origins[0][:100]}`" if origins else "Pages of other sites"
    return _refuse(
        "origin_not_allowed",
        "origin",
        f"{page} may not use this gateway. Without API keys it accepts its own pages and the origins in "
        "TOKENCAST_CORS_ORIGINS.",
    )


def _is_own(origin: str, host: str, *, vouched: bool) -> bool:
    """Return whether the origin is the one that the request was sent to. The scheme may differ, since a proxy may have
    ended TLS; so may the port, which some proxies omit from `Host`, if the browser itself has compared them
    (`vouched`)."""
    normal, asked = _normal(origin), parse_authority(host)
    scheme, _, authority = normal.partition("://")
    page = parse_authority(authority)
    if page is None or asked is None or page.host != asked.host:
        return False
    default = DEFAULT_PORTS.get(scheme)
    return vouched or (page.port or default) == (asked.port or default)


def _is_visit(method: str, path: str, headers: Headers) -> bool:
    """Return whether the request is a navigation to one of the gateway's pages."""
    mode, destination = _only(headers, "sec-fetch-mode"), _only(headers, "sec-fetch-dest")
    navigates = mode == "navigate" and destination in (None, "document")
    return method in ("GET", "HEAD") and navigates and (path in _PAGES or path.startswith("/static/"))


def _body_refusal(method: str, headers: Headers) -> JSONResponse | None:
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    if method in ("GET", "HEAD") or not has_body:
        return None
    kinds = {kind.partition(";")[0].strip().lower() for kind in headers.getlist("content-type") or [""]}
    form = set[str]() if is_browser(headers) else _FORM
    if all(_is_json(kind) or kind in form for kind in kinds):
        return None
    message = "The body must be JSON, with `Content-Type: application/json`."
    return _refuse("unsupported_media_type", "content-type", message)


def _only(headers: Headers, name: str) -> str | None:
    """Return the value of a header; None if it is missing, and "" if it has several values, none of which is then
    used."""
    values = set(headers.getlist(name))
    return "" if len(values) > 1 else next(iter(values), None)


def _is_json(kind: str) -> bool:
    return kind in _JSON or (kind.startswith("application/") and kind.endswith("+json"))


def _normal(origin: str) -> str:
    """Return the origin in the form of the settings; "" for a value that is no origin, such as `null`."""
    try:
        return normalize_origin(origin) if origin != "*" and origin.isascii() else ""
    except ValueError:
        return ""

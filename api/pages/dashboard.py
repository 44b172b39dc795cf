"""The dashboard: the files of `api/static`, unchanged. There is no build step and no third-party request."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_STATIC = files("api").joinpath("static")
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def pages() -> list[Route]:
    """Return the routes: the page at `/`, all other files under `/static/`, by their path in the folder."""
    paths = {"/" if name == "index.html" else f"/static/{name}": name for name in sorted(_names(_STATIC))}
    return [*(_route(*each) for each in paths.items()), Route("/favicon.ico", _no_icon)]


def _names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    """Yield the paths of the servable files, relative to the static folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _names(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            yield prefix + entry.name


def _route(path: str, name: str) -> Route:
    async def serve(_: Request) -> Response:
        body = _STATIC.joinpath(name).read_bytes()
        return Response(body, headers=_SECURITY, media_type=_TYPES[name.rpartition(".")[2]])

    return Route(path, serve, methods=["GET"])


async def _no_icon(_: Request) -> Response:
    return Response(status_code=204)  # browsers request it for pages other than ours

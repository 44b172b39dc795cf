"""Third-party files for browsers: `api/static/vendor/<name>-<version>/`, copied there by `make vendor`.

They are stored compressed and served under the names that they had in their packages. A path contains the version, so a
browser keeps what it has got.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = files("api").joinpath("static", "vendor")
_TYPES = {"js": "text/javascript", "css": "text/css"}
_HEADERS = {
    "cache-control": "public, max-age=31536000, immutable",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}


@cache
def path_of(library: str) -> str:
    """Return the path under which a library's files are served, with its version."""
    [folder] = (entry.name for entry in _FOLDER.iterdir() if entry.name.rpartition("-")[0] == library)
    return f"/static/vendor/{folder}"


def vendor_routes() -> list[Route]:
    folders = (entry for entry in _FOLDER.iterdir() if entry.is_dir())
    names = sorted((folder.name, file.name) for folder in folders for file in folder.iterdir())
    return [_route(folder, name.removesuffix(".gz")) for folder, name in names if name.endswith(".gz")]


def _route(folder: str, name: str) -> Route:
    async def serve(request: Request) -> Response:
        compressed = _accepts_gzip(request)
        headers = {**_HEADERS, "content-encoding": "gzip"} if compressed else _HEADERS
        content = _content(folder, name, compressed=compressed)
        return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])

    return Route(f"/static/vendor/{folder}/{name}", serve, methods=["GET"])


@cache
def _content(folder: str, name: str, *, compressed: bool) -> bytes:
    """Return a file's content. It is kept, so that responses that are not read at once share its memory."""
    content = _FOLDER.joinpath(folder, f"{name}.gz").read_bytes()
    return content if compressed else gzip.decompress(content)


def _accepts_gzip(request: Request) -> bool:
    """Return whether gzip is accepted by name. `q` counts as a refusal only if it is 0 (RFC 9110 §12.5.3)."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip"):
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False

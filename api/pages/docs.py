"""`/docs`: Swagger UI over `/openapi.json`, from files of the gateway. The page makes no request to another origin."""

from __future__ import annotations

from functools import cache

from api.pages.vendor import path_of

SECURITY = {
    # Swagger UI needs neither inline scripts nor eval; its icons are data: URLs.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Tokencast API</title>
<link rel="stylesheet" href="{viewer}/swagger-ui.css">
<link rel="stylesheet" href="/static/css/docs.css">
<header><a href="/">Dashboard</a> <a href="/openapi.json">openapi.json</a></header>
<main id="viewer"><noscript><p>This page needs JavaScript. The description that it shows is
<a href="/openapi.json">openapi.json</a>.</noscript></main>
<script src="{viewer}/swagger-ui-bundle.js"></script>
<script type="module" src="/static/views/docs.js"></script>
</html>
"""


@cache
def page() -> str:
    return _PAGE.format(viewer=path_of("swagger-ui"))

"""`/docs`: the document of `/openapi.json` as a plain page, whose only other request is its style sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

import msgspec

Json = dict[str, Any]
SECURITY = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_METHODS = ("get", "post", "patch", "delete")


def page(document: Json) -> str:
    info = document["info"]
    operations = [
        (method, path, item[method], item.get("parameters", []))
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]
    contents = "".join(f'<li><a href="#{one["operationId"]}">{_name(method, path)}</a> {_text(one["summary"])}'
                       for method, path, one, _ in operations)  # fmt: skip
    sections = "".join("".join(_operation(*operation)) for operation in operations)
    schemas = "".join("".join(_schema(*schema)) for schema in document["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{escape(info["title"])} API</title><link rel="stylesheet" href="/static/css/docs.css">'
        f"<main><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"{''.join(f'<p>{_text(part)}' for part in info['description'].split(chr(10) * 2))}"
        f'<p><a href="/openapi.json">openapi.json</a><ul class="contents">{contents}</ul>{sections}'
        f"<h2>Schemas</h2>{schemas}</main></html>\n"
    )


def _operation(method: str, path: str, operation: Json, shared: list[Json]) -> Iterator[str]:
    yield f'<section id="{operation["operationId"]}"><h2>{_name(method, path)}</h2><p>{_text(operation["summary"])}.'
    parameters = [*shared, *operation.get("parameters", [])]
    if parameters:
        yield "<table><caption>Parameters</caption>"
        for one in parameters:
            kind = _kind(one["schema"])
            described = _text(one.get("description", ""))
            yield f"<tr><th>{escape(one['name'])}<td>{one['in']}<td>{kind}<td>{described}"
        yield "</table>"
    if "requestBody" in operation:
        yield f"<p>Body: {_content(operation['requestBody']['content'])}"
    yield "<table><caption>Responses</caption>"
    for status, answer in sorted(operation["responses"].items()):
        headers = ", ".join(f"<code>{escape(name)}</code>" for name in answer.get("headers", {}))
        described = _text(answer["description"]) + (f" Headers: {headers}." if headers else "")
        yield f"<tr><th>{status}<td>{_content(answer.get('content', {}))}<td>{described}"
    yield "</table></section>"


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<section id="schema-{name}"><h3>{escape(name)}</h3>'
    if described := schema.get("description"):
        yield f"<p>{_text(described)}"
    yield "<table>"
    for field, shape in schema.get("properties", {}).items():
        mark = "" if field in schema.get("required", ()) else " <small>optional</small>"
        yield f"<tr><th>{escape(field)}{mark}<td>{_kind(shape)}<td>{_text(shape.get('description', ''))}"
    yield "</table></section>"


def _name(method: str, path: str) -> str:
    return f"<code><b>{method.upper()}</b> {escape(path)}</code>"


def _content(content: Json) -> str:
    return ", ".join(
        f"{_kind(of['schema'])}" if kind == "application/json" else f"<code>{escape(kind)}</code>"
        for kind, of in content.items()
    )


def _kind(schema: Json) -> str:
    """Describe a schema in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if "properties" in schema:
        return f"<code>{escape(msgspec.json.encode(list(schema['properties'])).decode())}</code>"
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join((schema.get("type", "anything"), *bounds))


def _text(text: str) -> str:
    """Escape a text, and mark up its `code`."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))

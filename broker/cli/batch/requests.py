"""The input of `batch`: one request per line, in the format of OpenAI's batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import click

from broker.chunks import Json

URL = "/v1/chat/completions"
_PART, _PART_BYTES = 100, 4 * 1024 * 1024
"""Requests that are sent together, and their bytes."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request. `size`: bytes of its line."""

    custom_id: str
    body: Json
    size: int


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a file. `digest`: the hash of its content, from which the ids and idempotency keys are made."""

    lines: list[Line]
    digest: str

    @property
    def group(self) -> str:
        """The group of the generations, unless a request names another."""
        return f"batch-{self.digest[:16]}"

    def id_of(self, custom_id: str) -> str:
        """Return the id of a result: another file's request with the same custom_id has another one."""
        return f"batch_req_{self._hash(custom_id)[:24]}"

    def key_of(self, part: list[Line]) -> str:
        """Return the idempotency key of a part. Its generations are then known by the part and their place in it."""
        return f"batch-{self._hash(part[0].custom_id)[:32]}"

    def parts(self) -> Iterator[list[Line]]:
        """Divide the file into the parts that are sent together. They only depend on its content, so that a repeated
        command sends the same ones."""
        part: list[Line] = []
        size = 0
        for line in self.lines:
            if part and (len(part) == _PART or size + line.size > _PART_BYTES):
                yield part
                part, size = [], 0
            part.append(line)
            size += line.size
        if part:
            yield part

    def _hash(self, custom_id: str) -> str:
        return hashlib.sha256(f"{self.digest} {custom_id}".encode("utf-8", "surrogatepass")).hexdigest()


def read_requests(content: bytes) -> Requests:
    """Parse a file. BadParameter names the first line that is not valid."""
    lines: list[Line] = []
    known: set[str] = set()
    for number, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = _parse(text)
            if line.custom_id in known:
                raise ValueError(f"the custom_id {line.custom_id!r} occurs twice")
        except (ValueError, RecursionError) as error:
            raise click.BadParameter(f"line {number}: {error}", param_hint="FILE") from None
        known.add(line.custom_id)
        lines.append(line)
    if not lines:
        raise click.BadParameter("there are no requests.", param_hint="FILE")
    return Requests(lines, hashlib.sha256(content).hexdigest())


def _parse(text: bytes) -> Line:
    request: object = json.loads(text)
    if not isinstance(request, dict):
        raise ValueError("not a JSON object")
    fields = cast(Json, request)
    custom_id, body = fields.get("custom_id"), fields.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError("`custom_id` must be a string")
    if not isinstance(body, dict):
        raise ValueError("`body` must be an object")
    if fields.get("method", "POST") != "POST" or fields.get("url", URL) != URL:
        raise ValueError(f"`method` and `url` must be POST and {URL}")
    return Line(custom_id, cast(Json, body), len(text))

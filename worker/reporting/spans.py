"""The span of an upstream call, by OpenTelemetry's semantic conventions for generative AI: name, kind, attributes.

https://github.com/open-telemetry/semantic-conventions-genai. Texts (messages, tools, stop sequences, output) are never
attributes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from broker.chunks import decode_chunk
from broker.events import USAGE
from broker.runtime.tracing import Spanned, Value, span, tracing
from broker.settings.origins import DEFAULT_PORTS
from broker.settings.upstreams import Upstream
from worker.upstream.chunks import Chunk
from worker.upstream.errors import UpstreamError

Json = dict[str, Any]
_LONGEST = 256  # characters of a value that an upstream has chosen
_GREATEST = 2**63  # exclusive limit of an integer in OTLP
_PROVIDERS = {
    "anthropic.com": "anthropic",
    "amazonaws.com": "aws.bedrock",
    "azure.com": "azure.ai.openai",
    "cohere.com": "cohere",
    "deepseek.com": "deepseek",
    "googleapis.com": "gcp.gemini",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}
"""Providers by domain; of any other server that speaks OpenAI's protocol it is `openai`, as the conventions say."""
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
}
"""Parameters of a request, and the attribute after `gen_ai.request.`."""


class CallSpan:
    """The span of a call. `received` notes what the attributes of the response are made of."""

    def __init__(self, spanned: Spanned) -> None:
        self._span = spanned
        self._called = time.monotonic()
        self._first = b""
        self._last: list[bytes] = []

    def received(self, chunks: Sequence[Chunk]) -> None:
        """Note the chunks of one read."""
        if not self._first and chunks:
            self._first = chunks[0].data
            self._span.note(gen_ai__response__time_to_first_chunk=round(time.monotonic() - self._called, 6))
        self._last += [chunk.data for chunk in chunks if chunk.finished or chunk.type == USAGE]

    def end(self) -> None:
        """Set the attributes of the response."""
        if self._first:
            self._span.note_all(_of_response([decode_chunk(data) for data in (self._first, *self._last)]))

    def failed(self, error: UpstreamError) -> None:
        """Set the attributes of a failed call: its class, never its message."""
        kind = str(error.http_status) if error.http_status else error.cause or error.code or "_OTHER"
        self._span.note(error__type=kind)
        self._span.failed(error.code or "")


class _NoSpan(CallSpan):
    """While nothing is recorded."""

    def __init__(self) -> None:
        pass

    def received(self, chunks: Sequence[Chunk]) -> None: ...
    def end(self) -> None: ...
    def failed(self, error: UpstreamError) -> None: ...


@asynccontextmanager
async def recorded_call(gid: str, upstream: Upstream | None, model: str, body: Json) -> AsyncGenerator[CallSpan]:
    """Record the span of a call around a block. `upstream`: None if the worker does not know it."""
    if not tracing():
        yield _NoSpan()
        return
    sent = (upstream.sent_model(model) if upstream else model)[:_LONGEST]
    with span(f"chat {sent}", kind="client", generation__id=gid) as spanned:
        spanned.note_all(_of_request(sent, body))
        if upstream is not None:
            spanned.note_all(_of_upstream(upstream))
        call = CallSpan(spanned)
        try:
            yield call
        except UpstreamError as error:
            call.failed(error)
            raise
        finally:
            call.end()


def _of_upstream(upstream: Upstream) -> dict[str, Value | None]:
    url = urlsplit(upstream.base_url)
    host = url.hostname or ""
    provider = next((name for domain, name in _PROVIDERS.items() if f".{host}".endswith(f".{domain}")), "openai")
    return {
        "gen_ai.provider.name": provider,
        "server.address": host,
        "server.port": url.port or DEFAULT_PORTS[url.scheme.lower()],
        "tokencast.upstream": upstream.name,
    }


def _of_request(model: str, body: Json) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": model,
        "gen_ai.request.stream": True,
    }
    for name, attribute in _PARAMETERS.items():
        if (number := _number(body.get(name))) is not None:
            found[f"gen_ai.request.{attribute}"] = number
    if (choices := _number(body.get("n"))) not in (None, 1):
        found["gen_ai.request.choice.count"] = choices
    form = body.get("response_format")
    if isinstance(form, dict):
        wanted = cast(Json, form).get("type")
        found["gen_ai.output.type"] = "text" if wanted == "text" else "json"
    return found


def _of_response(chunks: Sequence[Json]) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        for name in ("id", "model"):
            if (text := chunk.get(name)) and isinstance(text, str):
                found.setdefault(f"gen_ai.response.{name}", text[:_LONGEST])
        for choice in cast("list[Json]", chunk.get("choices") or []):
            if isinstance(reason := choice.get("finish_reason"), str):
                reasons[int(choice.get("index") or 0)] = reason[:_LONGEST]
        if isinstance(usage := chunk.get("usage"), dict):
            found |= _of_usage(cast(Json, usage))
    if reasons:
        found["gen_ai.response.finish_reasons"] = [reasons[index] for index in sorted(reasons)]
    return found


def _of_usage(usage: Json) -> dict[str, Value | None]:
    return {
        "gen_ai.usage.input_tokens": _number(usage.get("prompt_tokens")),
        "gen_ai.usage.output_tokens": _number(usage.get("completion_tokens")),
        "gen_ai.usage.cache_read.input_tokens": _detail(usage, "prompt_tokens_details", "cached_tokens"),
        "gen_ai.usage.reasoning.output_tokens": _detail(usage, "completion_tokens_details", "reasoning_tokens"),
    }


def _detail(usage: Json, group: str, name: str) -> int | float | None:
    details = usage.get(group)
    return _number(cast(Json, details).get(name)) if isinstance(details, dict) else None


def _number(value: object) -> int | float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if abs(value) < _GREATEST else None

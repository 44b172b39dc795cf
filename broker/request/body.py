"""Validation of request bodies: a chat.completions body is checked and split into our own fields and the body for the
upstream, which receives every other field unchanged."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import msgspec

from broker import json_pieces as pieces
from broker.errors import InvalidRequest
from broker.json_depth import MAX_DEPTH, is_nested_too_deeply
from broker.request.options import MAX_TTL_SECONDS, Options, Policy, parse_options
from broker.request.preview import preview_of

Json = dict[str, Any]

# Our own fields, which the upstream does not receive (its `stream` is always true).
_OURS = ("metadata", "on_upstream_error", "ttl_seconds", "tokencast", "stream")
ASSUMED_TOKENS = 512
"""Tokens of an answer without `max_tokens`, for an upstream's rate; the end of the call corrects it."""
MOST_TOKENS = 10_000_000
MAX_IDEMPOTENCY_KEY = 255  # characters
METADATA_PAIRS, METADATA_NAME, METADATA_VALUE = 16, 64, 512
"""Maximum number of keys in `metadata`, and maximum characters of a key and of a value."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A validated body. `upstream` is the JSON for the upstream, without `stream`."""

    model: str
    upstream: bytes
    n: int
    stream: bool
    include_usage: bool
    metadata: dict[str, str]
    on_upstream_error: str
    ttl_seconds: float | None
    fingerprint: str
    prompt_tokens: int
    """Estimate, a quarter of the characters, used if the upstream reports no usage."""
    reserved_tokens: int
    """Tokens that a call reserves of an upstream's rate: those of the prompt, and the most that it may answer."""
    options: Options
    preview: str = ""
    """First line of the last user message."""


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Encode a body as HTTP clients do. Raises InvalidRequest if it is not JSON: no NaN, only strings, numbers,
    booleans, None, lists, tuples and dicts."""
    try:
        text = json.dumps(dict(body), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError as error:
        raise InvalidRequest(_TOO_DEEP, code="invalid_json") from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from error
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()  # lone surrogates: U+FFFD


def check_idempotency_key(key: str | None) -> str | None:
    """Return the key, None if it is empty. Raises InvalidRequest if it is too long or contains a lone surrogate."""
    if not key:
        return None
    if len(key) > MAX_IDEMPOTENCY_KEY:
        message = f"`Idempotency-Key` can have up to {MAX_IDEMPOTENCY_KEY} characters."
        raise InvalidRequest(message, param="idempotency-key")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("`Idempotency-Key` is not valid Unicode.", param="idempotency-key") from None
    return key


def parse_json(body: bytes) -> Json:
    """Parse a body. Raises InvalidRequest if it is not JSON (RFC 8259: no NaN), not an object, or nested too deeply."""
    text = body.removeprefix(codecs.BOM_UTF8)  # some editors and .NET add one; RFC 8259 §8.1 allows to ignore it
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest(_TOO_DEEP, code="invalid_json") from error
    if is_nested_too_deeply(value):
        raise InvalidRequest(_TOO_DEEP, code="invalid_json")
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_type")
    return cast(Json, value)


_TOO_DEEP = f"The body has more than {MAX_DEPTH} levels of arrays and objects."
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\.", re.DOTALL
)


def _decode(text: bytes) -> object:
    """Decode JSON. A lone surrogate, as in a text that JavaScript cut within an emoji, becomes U+FFFD, as in browsers
    (Encoding, UTF-8 encode): JSON can escape it, but UTF-8 cannot encode it."""
    try:
        return pieces.decode(text)
    except msgspec.DecodeError:
        mended = _ESCAPES.sub(lambda escape: rb"\ufffd" if len(escape[0]) == 6 else escape[0], text)
        if mended == text:
            raise
        return pieces.decode(mended)


def parse_request(body: Json) -> CompletionRequest:
    """Validate a body. Raises InvalidRequest with the name of the first invalid parameter."""
    model = _require(body, "model", str)
    if not model or len(model) > 256 or not model.isprintable():
        raise InvalidRequest("`model` must be 1 to 256 printable characters.", param="model")
    messages = cast("list[object]", _require(body, "messages", list))
    if not messages:
        raise InvalidRequest("`messages` must not be empty.", param="messages", code="empty_array")
    for position, message in enumerate(messages):
        _check_message(message, f"messages[{position}]")
    n = _optional(body, "n", int, 1)
    if not 1 <= n <= 128:
        raise InvalidRequest("`n` must be between 1 and 128.", param="n")
    stream_options = cast(Json, _optional(body, "stream_options", dict, {}))
    prompt_tokens = (sum(map(_characters, messages)) + 3) // 4
    options = parse_options(body.get("tokencast"))
    body = _merged(body, options)
    upstream = msgspec.json.encode({key: value for key, value in body.items() if key not in _OURS})
    return CompletionRequest(
        model=model,
        upstream=upstream,
        n=n,
        stream=_optional(body, "stream", bool, False),
        include_usage=_optional(stream_options, "include_usage", bool, False, within="stream_options."),
        metadata=_metadata(body),
        on_upstream_error=_policy(body),
        ttl_seconds=ttl_of(body, MAX_TTL_SECONDS),
        fingerprint=_fingerprint({**body, **options.same_request()}, large=len(upstream) > pieces.PIECE),
        prompt_tokens=prompt_tokens,
        reserved_tokens=prompt_tokens + n * _most_tokens(body),
        options=options,
        preview=preview_of(messages),
    )


def _most_tokens(body: Json) -> int:
    """Return the most tokens of one choice; ASSUMED_TOKENS if the request does not say."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, MOST_TOKENS)
    return ASSUMED_TOKENS


def _merged(body: Json, options: Options) -> Json:
    """Return a body with the options that can also be given at its top. Raises InvalidRequest if one is given twice."""
    merged = dict(body)
    for name in ("metadata", "on_upstream_error", "ttl_seconds"):
        value = getattr(options, name)
        if value is None:
            continue
        if body.get(name) is not None:
            raise InvalidRequest(f"`{name}` is given twice: also in `tokencast`.", param=f"tokencast.{name}")
        merged[name] = value
    return merged


def _require(body: Json, name: str, kind: type[Any]) -> Any:
    if body.get(name) is None:
        raise InvalidRequest(f"`{name}` is required.", param=name, code="missing_required_parameter")
    return _optional(body, name, kind, None)


def _optional(body: Json, name: str, kind: type[Any], default: Any, within: str = "") -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequest(f"`{within}{name}` must be {_KINDS[kind]}.", param=within + name, code="invalid_type")
    return value


_KINDS: dict[type[Any], str] = {
    str: "a string",
    list: "an array",
    dict: "an object",
    int: "an integer",
    bool: "a boolean",
}


def _check_message(message: object, param: str) -> None:
    """Reject only messages that no upstream can accept: the sets of roles and of content types are open."""
    if not isinstance(message, dict):
        raise InvalidRequest(f"`{param}` must be an object.", param=param, code="invalid_type")
    fields = cast(Json, message)
    role = fields.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"`{param}.role` must be a string, such as `user`.", param=f"{param}.role")
    if not isinstance(fields.get("content"), str | list | dict | None):
        raise InvalidRequest(
            f"`{param}.content` must be a string, an array of parts or an object.",
            param=f"{param}.content",
            code="invalid_type",
        )


def _metadata(body: Json) -> dict[str, str]:
    metadata = cast(Json, _optional(body, "metadata", dict, {}))
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise InvalidRequest("`metadata` must map strings to strings.", param="metadata", code="invalid_type")
        if len(key) > METADATA_NAME or len(value) > METADATA_VALUE:
            message = f"`metadata` keys can have up to {METADATA_NAME} characters, values up to {METADATA_VALUE}."
            raise InvalidRequest(message, param="metadata")
    if len(metadata) > METADATA_PAIRS:
        raise InvalidRequest(f"`metadata` can have up to {METADATA_PAIRS} keys.", param="metadata")
    return cast("dict[str, str]", metadata)


def _policy(body: Json) -> str:
    policy = body.get("on_upstream_error")
    if policy is None:
        return "fail"
    if policy not in get_args(Policy):
        message = "`on_upstream_error` must be `fail`, `restart` or `continue`."
        raise InvalidRequest(message, param="on_upstream_error")
    return policy


def ttl_of(body: Json, most: int) -> float | None:
    """Return `ttl_seconds`, which must be from 1 to `most`; None if it is absent."""
    ttl = body.get("ttl_seconds")
    if ttl is None:
        return None
    if not isinstance(ttl, int | float) or isinstance(ttl, bool):
        raise InvalidRequest("`ttl_seconds` must be a number.", param="ttl_seconds", code="invalid_type")
    if not 1 <= ttl <= most:
        raise InvalidRequest(f"`ttl_seconds` must be between 1 and {most}.", param="ttl_seconds")
    return float(ttl)


def _fingerprint(body: Json, *, large: bool) -> str:
    """Hash the body without `stream` and `stream_options`, so a repeated POST can request the other response form."""
    same = {key: value for key, value in body.items() if key not in ("stream", "stream_options", "tokencast")}
    digest = hashlib.sha256()
    for piece in pieces.dump(same) if large else (pieces.dump_whole(same),):
        digest.update(piece.encode())
    return digest.hexdigest()


def _characters(message: object) -> int:
    content = cast(Json, message).get("content")
    if isinstance(content, str):
        return len(content)
    parts = cast("list[object]", content if isinstance(content, list) else [content])
    texts = [cast(Json, part).get("text") for part in parts if isinstance(part, dict)]
    return sum(len(text) for text in texts if isinstance(text, str))

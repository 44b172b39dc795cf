"""The options of a generation that are ours and not the upstream's: the fields of a request's `tokencast` object.

They are in one object, so that no field of an upstream is taken for ours (some know a `priority` of their own) and a
misspelt one is refused instead of being passed on.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from broker.errors import InvalidRequest

Json = dict[str, Any]

MAX_TTL_SECONDS = 30 * 86400  # the indexes are kept for 32 days
MAX_DELAY = 7 * 86400
"""Maximum seconds until a scheduled generation may run, and maximum `queue_timeout`: the lifetime of the keys of a
generation that nothing renews."""
DEFAULT_PRIORITY = 3
MAX_GROUP = 64  # characters of a group's name

Priority = Annotated[int, Meta(ge=1, le=5, description="1 is first, 5 last; strict between levels.")]
Seconds = Annotated[float, Meta(ge=0, le=MAX_DELAY)]
Delay = Annotated[Seconds, Meta(description="Seconds before which the generation does not run.")]
RunAt = Annotated[float, Meta(ge=0, description="Unix seconds before which the generation does not run.")]
QueueTimeout = Annotated[
    Seconds, Meta(description="Maximum seconds of waiting, from the creation or from the time it is scheduled for.")
]
Policy = Literal["fail", "restart", "continue"]
WebhookEvent = Literal["completed", "failed", "cancelled"]


class WebhookOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """Where to announce the end of a generation, and which ends to announce."""

    url: Annotated[str, Meta(min_length=8, max_length=2048)]
    events: Annotated[tuple[WebhookEvent, ...], Meta(min_length=1)] = ("completed", "failed", "cancelled")


class Options(Struct, forbid_unknown_fields=True, frozen=True):
    """The `tokencast` object of a request. `null` is the same as an absent field."""

    priority: Priority | None = None
    delay_seconds: Delay | None = None
    run_at: RunAt | None = None
    queue_timeout: QueueTimeout | None = None
    group: Annotated[str, Meta(min_length=1, max_length=MAX_GROUP)] | None = None
    webhook: WebhookOptions | None = None
    on_upstream_error: Policy | None = None
    ttl_seconds: Annotated[float, Meta(ge=1, le=MAX_TTL_SECONDS)] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def level(self) -> int:
        """The priority, or its default."""
        return DEFAULT_PRIORITY if self.priority is None else self.priority

    def run_at_ms(self, created_ms: int) -> int | None:
        """Return the time before which the generation must not run, in unix ms; None if it may run at once."""
        if self.delay_seconds:
            return created_ms + math.ceil(self.delay_seconds * 1000)
        if self.run_at is not None and self.run_at * 1000 > created_ms:
            return math.ceil(self.run_at * 1000)
        return None

    def same_request(self) -> Json:
        """Return the options that belong to a request's identity under an Idempotency-Key. The others can differ in a
        repeated request: an SDK's retry with another timeout must not be refused."""
        named = ("webhook", "on_upstream_error", "ttl_seconds", "metadata")
        return {name: value for name in named if (value := msgspec.to_builtins(getattr(self, name))) is not None}


def parse_options(value: object) -> Options:
    """Validate a `tokencast` object; None is an empty one. Raises InvalidRequest with the path of the invalid field."""
    if value is None:
        return Options()
    try:
        options = msgspec.convert(value, Options)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        message = _TYPES.sub(_in_words, message)
        param = "tokencast" + path.rstrip("`")
        raise InvalidRequest(f"`{param}`: {message}.", param=param, code="invalid_option") from None
    if options.delay_seconds is not None and options.run_at is not None:
        raise InvalidRequest("Use either `tokencast.delay_seconds` or `tokencast.run_at`.", param="tokencast.run_at")
    if options.group is not None:
        check_group(options.group, "tokencast.group")
    return options


_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "object": "an object",
    "array": "an array",
}
_TYPES = re.compile(r"`((?:int|float|str|bool|object|array|null)(?: \| \w+)*)`")


def _in_words(types: re.Match[str]) -> str:
    """Return the types of a message as JSON calls them: msgspec names those of Python."""
    return " or ".join(_NAMES.get(name, name) for name in types[1].split(" | "))


def check_group(name: str, param: str) -> str:
    """Return the name of a group. Raises InvalidRequest."""
    if not 1 <= len(name) <= MAX_GROUP or not name.isprintable():
        raise InvalidRequest(f"`{param}` must be 1 to {MAX_GROUP} printable characters.", param=param)
    return name


def check_run_at(run_at_ms: int | None, created_ms: int) -> None:
    """Raises InvalidRequest if a generation is scheduled for more than MAX_DELAY after its creation."""
    if run_at_ms is not None and run_at_ms > created_ms + MAX_DELAY * 1000:
        raise InvalidRequest(
            f"`tokencast.run_at` can be at most {MAX_DELAY // 86400} days ahead.", param="tokencast.run_at"
        )

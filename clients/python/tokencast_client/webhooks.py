"""Verification of webhooks (Standard Webhooks): signature and age. It needs only the standard library."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokencast_client.configuration import secret as secret_of
from tokencast_client.errors import Misconfigured, WebhookVerificationError
from tokencast_client.records import Generation, Json, to_generation, to_object

TOLERANCE = 300.0
"""Seconds by which the timestamp of a webhook may differ from the clock of the receiver."""
_PREFIX = "whsec_"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """A verified webhook. `id` is the same at each repetition; `data` is the generation, without its text."""

    id: str
    type: str
    """`generation.completed`, `generation.failed` or `generation.cancelled`."""
    timestamp: str
    """When the generation ended, in ISO 8601."""
    data: Generation
    raw: Json = field(repr=False, compare=False)


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Sequence[str] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> WebhookEvent:
    """Return the event of a webhook. Raises WebhookVerificationError if it is not authentic or too old.

    `body` must be the bytes as received. `headers` are those of the request, in any case. `secret`: one or several
    `whsec_…`, as a list or separated by commas; default: TOKENCAST_WEBHOOK_SECRET. One valid signature is enough.
    """
    keys = _keys(secret)
    content = body.encode() if isinstance(body, str) else body
    named = {name.lower(): value for name, value in headers.items()}
    message, timestamp, signatures = (named.get(f"webhook-{name}") for name in ("id", "timestamp", "signature"))
    if not message or not timestamp or not signatures:
        raise WebhookVerificationError("The headers webhook-id, webhook-timestamp and webhook-signature are required.")
    signed = f"{message}.{timestamp}.".encode() + content
    expected = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()) for key in keys]
    given = [text.encode() for kind, _, text in (one.partition(",") for one in signatures.split()) if kind == "v1"]
    if not any(hmac.compare_digest(one, other) for one in given for other in expected):
        raise WebhookVerificationError("No signature of the webhook is valid.")
    _check_age(timestamp, tolerance)
    try:
        event = to_object(json.loads(content))
        return WebhookEvent(
            id=message,
            type=str(event["type"]),
            timestamp=str(event["timestamp"]),
            data=to_generation(event["data"]),
            raw=event,
        )
    except (ValueError, KeyError) as error:
        raise WebhookVerificationError("The webhook is authentic, but its body is not known.") from error


def _check_age(timestamp: str, tolerance: float) -> None:
    """A signed request can be recorded and sent again: an old one is refused."""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise WebhookVerificationError("The header webhook-timestamp is not a number of seconds.")
    if abs(time.time() - int(timestamp)) > tolerance:
        raise WebhookVerificationError("The webhook is too old, or from the future: compare the clocks.")


def _keys(secret: str | Sequence[str] | None) -> list[bytes]:
    texts = secret_of("TOKENCAST_WEBHOOK_SECRET") or "" if secret is None else secret
    parts = texts.split(",") if isinstance(texts, str) else texts
    secrets = [part.strip() for part in parts if part.strip()]
    if not secrets:
        raise Misconfigured("The secret of the webhooks is required: an argument, or TOKENCAST_WEBHOOK_SECRET.")
    try:
        return [base64.b64decode(one.removeprefix(_PREFIX), validate=True) for one in secrets]
    except binascii.Error:
        raise Misconfigured("The secret of the webhooks must be `whsec_` and base64.") from None

"""The headers of a delivery, as Standard Webhooks defines them. The only module that imports its library."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

from broker.version import __version__


class Signer:
    """Signs with each of the secrets. A receiver accepts a delivery if one of the signatures is valid."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [Webhook(secret) for secret in secrets]

    def __bool__(self) -> bool:
        """Whether there is a secret."""
        return bool(self._keys)

    def headers(self, message_id: str, body: bytes, at: int) -> dict[str, str]:
        """Return the headers of an attempt made at `at` (unix seconds), by which a receiver refuses an old one."""
        sent, text = datetime.fromtimestamp(at, UTC), body.decode()
        return {
            "content-type": "application/json",
            "user-agent": f"Tokencast/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(at),
            "webhook-signature": " ".join(key.sign(message_id, sent, text) for key in self._keys),
        }

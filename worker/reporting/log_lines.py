"""The log lines of attempts: one at the start, one at each end. Failures are warnings.

They name the model, the upstream, the attempt, times, tokens, and the class of an error: never its message, which may
quote the request.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from broker.runtime.logging import Detail, details
from worker.attempt import Attempt
from worker.claims import Claim
from worker.upstream.errors import UpstreamError

log = logging.getLogger("tokencast.worker")


def log_start(claim: Claim) -> None:
    """Log that an attempt calls its upstream."""
    named = {**details(model=claim.model, upstream=claim.upstream), "fields": {"attempt": claim.ordinal}}
    log.info("%s: attempt %d", claim.gid, claim.ordinal, extra=named)


def log_completed(attempt: Attempt) -> None:
    """Log that an attempt has completed its generation."""
    log.info("%s: completed", attempt.claim.gid, extra=details(**_facts(attempt)))


def log_failed(attempt: Attempt, failure: UpstreamError) -> None:
    """Log that a generation has failed with an attempt."""
    named = details(**_of_failure(failure), **_facts(attempt))
    log.warning("%s: failed (%s)", attempt.claim.gid, failure.code, extra=named)


def log_returned(attempt: Attempt, failure: UpstreamError, then: str) -> None:
    """Log a failed call after which the generation goes on. `then`: what it does. An upstream that is only busy is
    nothing unusual."""
    level = logging.INFO if failure.outcome == "busy" else logging.WARNING
    named = details(**_of_failure(failure), **_facts(attempt))
    log.log(level, "%s: %s, %s", attempt.claim.gid, failure.code, then, extra=named)


def log_ended_elsewhere(attempt: Attempt, reason: str) -> None:
    """Log that an attempt is no longer ours: it was cancelled or deleted, or its lease has ended."""
    log.info("%s: ended elsewhere (%s)", attempt.claim.gid, reason, extra=details(**_facts(attempt)))


def _of_failure(failure: UpstreamError) -> dict[str, Detail]:
    return {"code": failure.code, "cause": failure.cause, "upstream_status": failure.http_status}


def _facts(attempt: Attempt) -> dict[str, Detail]:
    claim, first = attempt.claim, attempt.first_token_ms
    usage: dict[str, Any] = msgspec.json.decode(attempt.ending.usage) if attempt.ending else {}
    tokens = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {
        "model": claim.model,
        "upstream": claim.meta[b"up"].decode(),
        "attempt": claim.ordinal,
        "seconds": round(time.monotonic() - attempt.began, 3),
        "first_token_seconds": None if first is None else first / 1000,
        **{name: count for name, count in tokens.items() if isinstance(count, int)},
        "estimated": "true" if usage.get("estimated") is True else None,
    }

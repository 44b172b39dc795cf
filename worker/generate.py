"""Runs one generation, from its claim to its terminal event. Start with `GenerationRunner.run`.

claim → call the upstream → begin the attempt, push each chunk → finish. A call that is refused before the first token
hands the generation back to the queue (`hand_back.py`). After it, the policy decides: the generation fails, starts
again as a new attempt (`restart`), or goes on with another call in the same attempt (`continue`)."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import msgspec

from broker.completion.fold import Completion
from broker.concurrency.cancellation import cancel_and_wait
from broker.errors import StorageUnavailable
from broker.events import COMPLETED, FAILED
from broker.history.recorder import Figures
from broker.redis.client import Redis
from broker.runtime.tracing import Spanned, mark, past_span, span
from broker.settings.settings import Settings
from broker.store import commands
from worker.appender import Appender
from worker.attempt import FAILING_REPLIES, Attempt, AttemptEnded, Ending
from worker.claims import Claim, claim
from worker.continuation.calls import ContinuedCalls
from worker.continuation.reply import fold, usage_of
from worker.counters import WorkerCounters
from worker.hand_back import HandBack
from worker.places import Places
from worker.reporting.log_lines import log_completed, log_ended_elsewhere, log_failed, log_returned, log_start
from worker.reporting.spans import recorded_call
from worker.upstream.chunks import Chunk
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams

BEGIN_WAIT = 1.0
"""Seconds after an upstream's response headers at which an attempt begins without a token. An error that follows the
headers at once hands the generation back without a trace in its log."""
MAX_HELD_CHUNKS = 64  # maximum number of chunks without a token that wait for the first token
MAX_REASON = 100  # characters of a finish reason
log = logging.getLogger("tokencast.worker")
Json = dict[str, Any]


class GenerationRunner:
    """Runs claimed generations; one per process."""

    def __init__(
        self,
        store: Redis,
        appender: Appender,
        upstreams: Upstreams,
        places: Places,
        hand_back: HandBack,
        settings: Settings,
        history: Figures | None = None,
    ) -> None:
        self._store = store
        self._places = places
        self._hand_back = hand_back
        self._appender = appender
        self._upstreams = upstreams
        self._settings = settings
        self.counters = WorkerCounters(settings, history)
        self.claims: dict[str, Claim] = {}
        """Current claims of this process, by generation."""

    async def run(self, claim: Claim) -> None:
        """Run until the generation has its terminal event, from this worker or from elsewhere. If cancelled, it writes
        none."""
        deadline = asyncio.get_running_loop().time() + self._settings.max_duration
        current = claim
        following: Claim | None = claim
        try:
            while following is not None:
                current = self.claims[claim.gid] = following
                following = await self._attempt(following, deadline)
        finally:
            if self.claims.get(claim.gid) is current:  # otherwise the lease was lost and this process claimed it again
                del self.claims[claim.gid]

    async def _attempt(self, claim: Claim, deadline: float) -> Claim | None:
        """Run one attempt; return the claim of the next attempt, or None at the generation's end."""
        if claim.ordinal == 1:
            past_span("queue", claim.trace, claim.created_at, claim.claimed_at, generation__id=claim.gid)
        with span("attempt", claim.trace, generation__id=claim.gid, gen_ai__request__model=claim.model) as spanned:
            spanned.note(attempt=claim.ordinal)
            log_start(claim)
            return await self._run_attempt(claim, deadline, spanned)

    async def _run_attempt(self, claim: Claim, deadline: float, spanned: Spanned) -> Claim | None:
        attempt = self._appender.open(claim)
        self.counters.claimed(attempt)
        try:
            failure = await self._produce(attempt, deadline, lambda: self._call(attempt))
            then = "restart" if claim.restarts_on_error else "fail"
            if failure is not None and attempt.published and claim.continues_on_error:
                failure, then = await self._continue(attempt, failure, deadline)
            if failure is not None and attempt.published and failure.restartable and then != "fail":
                if then == "wait":
                    with suppress(StorageUnavailable):  # the lease ends, and the reaper returns it
                        await self._hand_back.give_up(attempt.claim)
                    log_returned(attempt, failure, "waits")
                    return None
                again = await self._claim_again(attempt.claim)
                if again is not None:
                    log_returned(attempt, failure, "starts again")
                    return again
            if failure is not None and not attempt.published and await self._is_handed_back(attempt, failure):
                return None
            await self._begin(attempt)
            failure = await self._finish(attempt, failure)
            if failure is not None:
                spanned.failed(failure.code or "")
        except AttemptEnded as end:
            spanned.note(ended_elsewhere=end.reason)
            log_ended_elsewhere(attempt, end.reason)
        finally:
            self._appender.discard(attempt)
            self.counters.closed(attempt)
            spanned.note(chunks=attempt.token_count, bytes=attempt.size)
        return None

    async def _continue(
        self, attempt: Attempt, failure: UpstreamError, deadline: float
    ) -> tuple[UpstreamError | None, str]:
        """Let other calls go on after the text so far. Return the failure that remains, and what follows from it."""
        calls = ContinuedCalls(
            attempt, self._store, self._upstreams, self._places, self.counters, self._settings
        )  # fmt: skip
        remaining = await self._produce(attempt, deadline, lambda: calls.run(failure))
        return remaining, calls.then

    async def _is_handed_back(self, attempt: Attempt, failure: UpstreamError) -> bool:
        """Return a generation to the queue whose call failed before the first token, if it may succeed later."""
        if attempt.ended is not None:
            return False
        try:
            handed_back = await self._hand_back.refuse(attempt, failure)
        except StorageUnavailable:  # of the logs' Redis; the lease ends, and the reaper returns it
            return True
        if handed_back:
            self.counters.retried(attempt, failure)
            log_returned(attempt, failure, "waits")
        return handed_back

    async def _begin(self, attempt: Attempt) -> None:
        """Begin the attempt in the log, once. Raises AttemptEnded."""
        if attempt.beginning is None:
            attempt.beginning = asyncio.ensure_future(self._write_beginning(attempt))
        await asyncio.shield(attempt.beginning)

    async def _write_beginning(self, attempt: Attempt) -> None:
        """If Redis does not respond, or has lost the claim, the first append begins the attempt: the appender restores
        attempts that Redis does not have."""
        claim = attempt.claim
        try:
            outcome = await commands.begin(self._store, claim.gid, claim.own, claim.upstream)
        except StorageUnavailable:
            outcome = "LOST"
        attempt.begun = True
        self.counters.begun(attempt)
        if outcome in ("GONE", "CLOSED", "FENCED"):
            raise AttemptEnded(outcome)

    async def _produce(
        self, attempt: Attempt, deadline: float, call: Callable[[], Awaitable[None]]
    ) -> UpstreamError | None:
        """Return the error that ended the completion, None if it is complete. Raises AttemptEnded if the attempt is not
        ours any more."""
        try:
            async with attempt.run_until(deadline):
                await call()
        except UpstreamError as error:
            return error
        except AttemptEnded as end:
            if end.reason not in FAILING_REPLIES:
                raise
            return _own_failure(attempt, end.reason)
        except TimeoutError:
            if attempt.reply_finished:  # only the connection was still open
                return None
            return UpstreamError("timeout", f"The generation took longer than {self._settings.max_duration:g} s.")
        except Exception as error:
            return _internal_error(attempt, error)
        return None

    async def _call(self, attempt: Attempt) -> None:
        """Make the upstream call. Chunks without a token (a role, a content filter result) are held until the first
        token: until then a failed call can be repeated without a trace in the log."""
        held: list[Chunk] = []
        called, claim = time.monotonic(), attempt.claim
        self._places.sent(claim.gid)
        upstream = self._settings.upstream_of(claim.resource)
        async with (
            recorded_call(claim.gid, upstream, claim.model, claim.body) as call,
            self._upstreams.open(claim.model, claim.body, claim.resource) as stream,
            self._begin_late(attempt),
        ):
            self._places.accept(claim.gid, stream.rate_limits)
            async for chunks in stream:
                call.received(chunks)
                attempt.reply_finished = stream.finished
                if attempt.published:
                    attempt.push(chunks)
                else:
                    held += chunks
                    if len(held) > MAX_HELD_CHUNKS or any(chunk.tokens for chunk in chunks):
                        await self._begin(attempt)
                        attempt.push(held)
                        self.counters.first_token(attempt, called)
                        mark("first token")
                if attempt.congested:
                    await attempt.drain()
        if held and not attempt.published:
            await self._begin(attempt)
            attempt.push(held)

    @asynccontextmanager
    async def _begin_late(self, attempt: Attempt) -> AsyncGenerator[None]:
        """Begin the attempt while the block runs, if the upstream keeps its first token for long."""

        async def begin() -> None:
            await asyncio.sleep(BEGIN_WAIT)
            with suppress(AttemptEnded):  # the appender notices it too
                await self._begin(attempt)

        task = asyncio.create_task(begin())
        try:
            yield
        finally:
            await cancel_and_wait((task,))

    async def _claim_again(self, ours: Claim) -> Claim | None:
        """Claim another attempt in the same slot. None if the attempts are used up; the current one is still ours."""
        if ours.ordinal + ours.continued >= self._settings.max_attempts:
            return None
        outcome = await claim(self._store, ours.gid, self._settings, ours.resource, ours.own, timeout=math.inf)
        if isinstance(outcome, Claim):
            return replace(outcome, continued=ours.continued)
        if outcome == "EXHAUSTED":
            return None
        raise AttemptEnded(outcome)

    async def _finish(self, attempt: Attempt, failure: UpstreamError | None) -> UpstreamError | None:
        try:
            failure = await _write_ending(attempt, failure)
        except AttemptEnded as end:
            if end.reason not in FAILING_REPLIES:
                raise
            failure = await _write_ending(attempt, _own_failure(attempt, end.reason))
        self._places.end_soon(attempt.claim.gid, "ok" if failure is None else "none", _used_tokens(attempt))
        self.counters.finished(attempt, failure)
        if failure is None:
            log_completed(attempt)
        else:
            log_failed(attempt, failure)
        return failure


def _own_failure(attempt: Attempt, reason: str) -> UpstreamError:
    """Drop the unsent events after a rejection that leaves the attempt ours; return the error that ends it."""
    attempt.drop_unsent()
    return UpstreamError(*FAILING_REPLIES[reason])


async def _write_ending(attempt: Attempt, failure: UpstreamError | None) -> UpstreamError | None:
    """Write the terminal event, even if the upstream's chunks cannot be merged. Return the error that it reports."""
    try:
        completion = Completion()
        await fold(attempt, completion)
        ending = _ending(attempt, completion, failure)
    except Exception as error:
        failure = _internal_error(attempt, error)
        ending = _ending(attempt, Completion(), failure)
    await attempt.finish(ending)
    return failure


def _internal_error(attempt: Attempt, error: Exception) -> UpstreamError:
    """Log an unexpected exception without its message, which may quote the upstream or the caller."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", attempt.claim.gid, type(error).__name__, where)
    return UpstreamError("internal_error", "Internal error in the worker.")


def _ending(attempt: Attempt, completion: Completion, failure: UpstreamError | None) -> Ending:
    usage = usage_of(attempt, completion)
    choices = completion.choices
    reason = next((choice["finish_reason"] for choice in choices if choice["index"] == 0), None)
    reason = reason[:MAX_REASON] if isinstance(reason, str) else None
    if failure is None:
        kind, status, error = COMPLETED, "completed", b""
        data = msgspec.json.encode({"finish_reason": reason, "usage": usage})
    else:
        kind, status, error = FAILED, "failed", msgspec.json.encode(failure.to_json())
        data = b'{"error":' + error + b"}"
    return Ending(
        kind, status, data, reason or "", msgspec.json.encode(usage), error, msgspec.json.encode(choices)
    )  # fmt: skip


def _used_tokens(attempt: Attempt) -> int | None:
    """Return the tokens of an ended call, by its usage."""
    usage: Json = msgspec.json.decode(attempt.ending.usage) if attempt.ending else {}
    total = usage.get("total_tokens")
    return total if isinstance(total, int) and total >= 0 else None

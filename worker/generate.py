"""One generation, from its claim to its ending. Main path: `Generator.run`.

claim → attempt: call the upstream, push each chunk → finish. Before the first token a call that may succeed is
repeated within the attempt; after it the generation fails, or starts anew as another attempt where it asks for that.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import traceback
from contextlib import suppress
from typing import Any

import msgspec

from broker.chunks import decode_chunk
from broker.completion.fold import Completion
from broker.errors import StorageUnavailable
from broker.events import CHUNK, COMPLETED, FAILED, USAGE, WAITING
from broker.generation import bounded_usage
from broker.redis.client import Redis
from broker.redis.clock import RedisClock
from broker.runtime.tracing import Spanned, mark, past_span, span
from broker.settings.settings import Settings
from worker.appender import Appender
from worker.attempt import OURS, Attempt, AttemptEnded, Ending
from worker.claims import Claim, announce_waiting, claim
from worker.counters import WorkerCounters
from worker.upstream.chunks import Chunk
from worker.upstream.errors import UpstreamError
from worker.upstream.stream import Upstreams

FIRST_RETRY, LONGEST_RETRY = 0.5, 8.0
HELD = 64  # chunks without a token that may wait for the first one
LONGEST_REASON = 100  # characters of a finish reason
FOLDED_AT_ONCE = 200  # chunks, 1 ms: others want the loop too
log = logging.getLogger("tokencast.worker")
Json = dict[str, Any]


class GenerationRunner:
    """Runs claimed generations; one per process."""

    def __init__(self, store: Redis, appender: Appender, upstreams: Upstreams, settings: Settings) -> None:
        self._store = store
        self._clock = RedisClock(store)
        self._appender = appender
        self._upstreams = upstreams
        self._settings = settings
        self.tally = WorkerCounters(settings)
        self.claims: dict[str, Claim] = {}
        """What this process writes now, by generation."""

    async def run(self, claim: Claim) -> None:
        """Until the generation has its ending, whoever wrote it. May be cancelled: then it has none."""
        deadline = asyncio.get_running_loop().time() + self._settings.max_duration
        current = claim
        following: Claim | None = claim
        try:
            while following is not None:
                current = self.claims[claim.gid] = following
                following = await self._attempt(following, deadline)
        finally:
            if self.claims.get(claim.gid) is current:  # else it was lost, and this process runs it anew
                del self.claims[claim.gid]

    async def _attempt(self, claim: Claim, deadline: float) -> Claim | None:
        """One attempt, to the generation's ending or to the claim of another attempt."""
        log.info("%s: attempt %d", claim.gid, claim.ordinal)
        if claim.ordinal == 1:
            past_span("queue", claim.trace, claim.created_at, claim.began, generation__id=claim.gid)
        with span("attempt", claim.trace, generation__id=claim.gid, gen_ai__request__model=claim.model) as spanned:
            spanned.note(attempt=claim.ordinal)
            return await self._run_attempt(claim, deadline, spanned)

    async def _run_attempt(self, claim: Claim, deadline: float, spanned: Spanned) -> Claim | None:
        attempt = self._appender.begin(claim)
        self.tally.began(attempt)
        try:
            failure = await self._produce(attempt, deadline)
            if failure is not None and failure.restartable and attempt.shown and claim.restarts:
                again = await self._claim_again(claim)
                if again is not None:
                    return again
            failure = await self._finish(attempt, failure)
            if failure is not None:
                spanned.failed(failure.code or "")
        except AttemptEnded as end:
            spanned.note(ended_elsewhere=end.reason)
            log.info("%s: ended elsewhere (%s)", claim.gid, end.reason)
        finally:
            self._appender.drop(attempt)
            self.tally.left(attempt)
            spanned.note(chunks=attempt.chunks, bytes=attempt.size)
        return None

    async def _produce(self, attempt: Attempt, deadline: float) -> UpstreamError | None:
        """Why the completion is not complete, None if it is. AttemptEnded if it is no longer ours."""
        try:
            async with attempt.until(deadline):
                await self._call_until_answered(attempt)
        except UpstreamError as error:
            return error
        except AttemptEnded as end:
            if end.reason not in OURS:
                raise
            return _cut(attempt, end.reason)
        except TimeoutError:
            if attempt.answered:  # only the connection was still open
                return None
            return UpstreamError("timeout", f"The generation took longer than {self._settings.max_duration:g} s.")
        except Exception as error:
            return _bug(attempt, error)
        return None

    async def _call_until_answered(self, attempt: Attempt) -> None:
        retries = Retries(self._settings.retry_budget)
        while True:
            try:
                return await self._call(attempt)
            except UpstreamError as error:
                delay = None if attempt.shown or not error.retryable else retries.delay(error.retry_after)
                if delay is None:
                    raise
                self.tally.retried(attempt, error)
                log.info("%s: %s, next call in %.1f s", attempt.claim.gid, error.code, delay)
                waiting = {"reason": error.code, "retry_at": round(await self._clock.now() + delay, 3)}
            attempt.note(WAITING, msgspec.json.encode(waiting))
            with suppress(StorageUnavailable):
                await announce_waiting(self._store, attempt.claim)
            await asyncio.sleep(delay)

    async def _call(self, attempt: Attempt) -> None:
        """One upstream call. Chunks without a token (a role, a content filter's verdict) wait for the first one:
        until then a failed call can be repeated without a trace."""
        held: list[Chunk] = []
        called = time.monotonic()
        async with self._upstreams.open(attempt.claim.model, attempt.claim.body) as stream:
            async for chunks in stream:
                attempt.answered = stream.finished
                if attempt.shown:
                    attempt.push(chunks)
                else:
                    held += chunks
                    if len(held) > HELD or any(chunk.tokens for chunk in chunks):
                        attempt.push(held)
                        self.tally.first_token(attempt, called)
                        mark("first token")
                if attempt.crowded:
                    await attempt.room()
        if held and not attempt.shown:
            attempt.push(held)

    async def _claim_again(self, ours: Claim) -> Claim | None:
        """Another attempt in the same slot. None if the budget is used up, and then this attempt is still ours."""
        outcome = await claim(self._store, ours.gid, self._settings, ours.own, patience=math.inf)
        if isinstance(outcome, Claim):
            return outcome
        if outcome == "EXHAUSTED":
            return None
        raise AttemptEnded(outcome)

    async def _finish(self, attempt: Attempt, failure: UpstreamError | None) -> UpstreamError | None:
        try:
            failure = await _write_ending(attempt, failure)
        except AttemptEnded as end:
            if end.reason not in OURS:
                raise
            failure = await _write_ending(attempt, _cut(attempt, end.reason))
        self.tally.finished(attempt, failure)
        log.info("%s: %s", attempt.claim.gid, "completed" if failure is None else f"failed ({failure.code})")
        return failure


class Retries:
    """How long to wait before each next call: exponential, with jitter, no less than the upstream asks for."""

    def __init__(self, budget: float) -> None:
        self._until = time.monotonic() + budget
        self._step = FIRST_RETRY

    def delay(self, retry_after: float | None) -> float | None:
        """Seconds; None if that would be beyond the budget."""
        delay = self._step * random.uniform(0.5, 1)
        self._step = min(2 * self._step, LONGEST_RETRY)
        if retry_after is not None:
            delay = max(delay, retry_after * random.uniform(1, 1.1))
        return delay if time.monotonic() + delay <= self._until else None


def _cut(attempt: Attempt, reason: str) -> UpstreamError:
    """For a refusal that leaves the attempt ours, and ready for this ending."""
    attempt.cut()
    return UpstreamError(*OURS[reason])


async def _write_ending(attempt: Attempt, failure: UpstreamError | None) -> UpstreamError | None:
    """Returns what it was in the end. Whatever goes wrong with what the upstream sent, there is an ending."""
    try:
        completion = Completion()
        await _fold(attempt, completion)
        ending = _ending(attempt, completion, failure)
    except Exception as error:
        failure = _bug(attempt, error)
        ending = _ending(attempt, Completion(), failure)
    await attempt.finish(ending)
    return failure


def _bug(attempt: Attempt, error: Exception) -> UpstreamError:
    """Logged without the error's message, which may quote what the upstream or the caller said."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", attempt.claim.gid, type(error).__name__, where)
    return UpstreamError("internal_error", "Something went wrong in the worker.")


async def _fold(attempt: Attempt, completion: Completion) -> None:
    """Merges the messages. In slices: a long completion would keep the loop for a tenth of a second."""
    for number, (kind, data) in enumerate(attempt.events()):
        if kind in (CHUNK, USAGE):
            completion.add(decode_chunk(data))
        if number % FOLDED_AT_ONCE == 0:
            await asyncio.sleep(0)


def _ending(attempt: Attempt, completion: Completion, failure: UpstreamError | None) -> Ending:
    told = completion.usage or {}
    usage = bounded_usage(told, len(msgspec.json.encode(told))) or _counted(attempt)
    choices = completion.choices
    reason = next((choice["finish_reason"] for choice in choices if choice["index"] == 0), None)
    reason = reason[:LONGEST_REASON] if isinstance(reason, str) else None
    if failure is None:
        kind, status, error = COMPLETED, "completed", b""
        data = msgspec.json.encode({"finish_reason": reason, "usage": usage})
    else:
        kind, status, error = FAILED, "failed", msgspec.json.encode(failure.to_json())
        data = b'{"error":' + error + b"}"
    return Ending(
        kind, status, data, reason or "", msgspec.json.encode(usage), error, msgspec.json.encode(choices)
    )  # fmt: skip


def _counted(attempt: Attempt) -> Json:
    prompt, completion = attempt.claim.prompt_tokens, attempt.chunks
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "estimated": True,
    }

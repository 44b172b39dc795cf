"""`ContinuedCalls`: the calls that go on after the text of a call that broke off, at this upstream or another one."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from broker.completion.fold import Completion
from broker.errors import StorageUnavailable
from broker.queue.commands import UpstreamLimits
from broker.queue.tickets import upstream_limits
from broker.redis.client import Redis
from broker.runtime.logging import details
from broker.settings.settings import Settings
from broker.store import commands
from worker.attempt import Attempt
from worker.continuation.chunks import Continuation, Json, final_chunk
from worker.continuation.overlap import Overlap
from worker.continuation.reply import fold, identity, usage_of
from worker.continuation.request import continuable_text, continued_body, has_all_tokens, sent_text
from worker.counters import WorkerCounters
from worker.hand_back import FIRST_DELAY, outcome_of
from worker.places import Places
from worker.reporting.log_lines import log_returned
from worker.reporting.spans import recorded_call
from worker.upstream.chunks import Chunk
from worker.upstream.errors import REQUEST_STATUSES, UpstreamError
from worker.upstream.stream import Upstreams

PATIENCE = 10.0
"""Maximum seconds for which a generation keeps its slot while no upstream takes its next call; the idle timeout, for
which a reply may be silent, if that is shorter. After that the queue is the better place."""
LONGEST_PAUSE = 0.5  # seconds until the upstreams are asked again
log = logging.getLogger("tokencast.worker")


class ContinuedCalls:
    """Makes calls that go on after the text of one attempt, until the reply is complete."""

    def __init__(
        self,
        attempt: Attempt,
        store: Redis,
        upstreams: Upstreams,
        places: Places,
        counters: WorkerCounters,
        settings: Settings,
    ) -> None:
        self._attempt = attempt
        self._store = store
        self._upstreams = upstreams
        self._places = places
        self._counters = counters
        self._settings = settings
        self._limits = {one.resource: one for one in upstream_limits(settings)}
        self.then: Literal["fail", "restart", "wait"] = "fail"
        """What follows if `run` fails: the end; another attempt, because the text cannot be continued; the queue,
        because no upstream took the call."""

    async def run(self, failure: UpstreamError) -> None:
        """Return when the reply is complete. Raises UpstreamError, the failure that remains. `failure`: that of the
        call that broke off."""
        attempt = self._attempt
        following: UpstreamError | None = failure
        while following is not None:
            failure, claim = following, attempt.claim
            if not failure.restartable:
                raise failure
            completion = Completion()
            await fold(attempt, completion)
            text = continuable_text(claim.body, completion.choices)
            if text is not None and has_all_tokens(claim.body, attempt.token_count):
                attempt.push([final_chunk(identity(attempt), "length")])
                return
            if claim.ordinal + claim.continued >= self._settings.max_attempts:
                raise failure
            if text is None:
                self.then = "restart"
                raise failure
            following = await self._continue(failure, text, usage_of(attempt, completion))

    async def _continue(self, failure: UpstreamError, text: str, spent: Json) -> UpstreamError | None:
        """Make calls until one adds something to the text. Return the error with which it breaks off; None if the reply
        is complete."""
        attempt, gid = self._attempt, self._attempt.claim.gid
        until = time.monotonic() + min(PATIENCE, self._settings.idle_timeout)
        delay, resting = FIRST_DELAY, dict[str, float]()
        while True:
            if not await self._take_place(until, resting):
                self.then = "wait"
                raise failure
            prepared = self._prepare(text, spent)
            if prepared is None:
                self.then = "restart"
                raise failure
            body, continuation = prepared
            try:
                await self._call(body, continuation)
            except UpstreamError as error:
                if attempt.continuation is continuation:
                    return error
                outcome = outcome_of(error)
                if outcome == "none":  # the upstream refuses to go on: as a new reply, it may succeed
                    self.then = "restart"
                    raise failure if error.restartable or error.status in REQUEST_STATUSES else error from None
                log_returned(attempt, error, "the text waits")
                await self._places.refuse(gid, outcome, error.retry_after, error.rate_limits)
                resting[attempt.claim.resource] = time.monotonic() + delay
                delay *= 2
            else:
                return None

    async def _take_place(self, until: float, resting: dict[str, float]) -> bool:
        """Take a place for the next call: at another upstream of the lane that has room, otherwise at the same one.
        Return whether there is one before `until` (monotonic time). `resting`: when upstreams can be called again."""
        gid = self._attempt.claim.gid
        while True:
            now = time.monotonic()
            free = [one for one in self._candidates() if resting.get(one.resource, 0.0) <= now]
            wait: float | None = None
            try:
                taken, wait = await self._places.take(gid, free)
            except StorageUnavailable:  # a place that it has remains its own
                place = self._places.of(gid)
                taken = "" if place is None else place.resource
            if taken:
                self._move(taken)
                return True
            if now >= until:
                return False
            await asyncio.sleep(LONGEST_PAUSE if wait is None else min(LONGEST_PAUSE, wait))

    def _candidates(self) -> list[UpstreamLimits]:
        """Return the upstreams that serve the model, beginning after the one that was called last."""
        claim = self._attempt.claim
        lane = self._settings.current_lane(claim.lane, claim.model).split(",")
        after = lane.index(claim.resource) + 1 if claim.resource in lane else 0
        upstreams = [self._settings.upstream_of(one) for one in lane]
        serving = {
            one
            for one, upstream in zip(lane, upstreams, strict=True)
            if upstream is not None and upstream.usable and upstream.serves(claim.model)
        }
        return [self._limits[one] for one in [*lane[after:], *lane[:after]] if one in serving & self._limits.keys()]

    def _move(self, resource: str) -> None:
        claim = self._attempt.claim
        meta = {**claim.meta, b"up": self._settings.name_of(resource).encode()}
        self._attempt.claim = replace(claim, resource=resource, meta=meta)

    def _prepare(self, text: str, spent: Json) -> tuple[Json, Continuation] | None:
        """Return the body of the next call, and what becomes of its chunks; None if the text cannot be sent."""
        attempt = self._attempt
        claim, tokens = attempt.claim, attempt.token_count
        upstream = self._settings.upstream_of(claim.resource)
        way = upstream.continue_with if upstream else "plain"
        body = continued_body(claim.body, text, way, tokens)
        if body is None:
            return None
        overlap = Overlap(sent_text(body), repeats_all=way == "prefix")
        return body, Continuation(identity(attempt), overlap, spent, claim.prompt_tokens + tokens, tokens)

    async def _call(self, body: Json, continuation: Continuation) -> None:
        attempt, claim = self._attempt, self._attempt.claim
        self._places.sent(claim.gid)
        upstream = self._settings.upstream_of(claim.resource)
        async with (
            recorded_call(claim.gid, upstream, claim.model, body) as call,
            self._upstreams.open(claim.model, body, claim.resource) as stream,
        ):
            self._places.accept(claim.gid, stream.rate_limits)
            async for chunks in stream:
                call.received(chunks)
                attempt.reply_finished = stream.finished
                await self._push(continuation, continuation.rewrite(chunks))
                if attempt.congested:
                    await attempt.drain()
            await self._push(continuation, continuation.end())

    async def _push(self, continuation: Continuation, chunks: list[Chunk]) -> None:
        attempt, claim = self._attempt, self._attempt.claim
        if not chunks:
            return
        attempt.push(chunks)
        if attempt.continuation is not continuation:
            attempt.continuation = continuation
            attempt.claim = replace(claim, continued=claim.continued + 1)
            self._counters.continued(attempt)
            log.info("%s: continues at %s", claim.gid, claim.resource, extra=details(attempt=claim.ordinal))
            with suppress(StorageUnavailable):
                await commands.move(self._store, claim.gid, claim.own, claim.meta[b"up"].decode())

"""Runs a batch: sends its requests, follows their generations to the end, and writes the results as they end.

One thread follows `/v1/activity`; the main thread does everything else, so that Ctrl-C interrupts it at any point. What
was sent is not lost: a repeated run sends the same idempotency keys and gets the same generations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import cast

from broker.chunks import Json
from broker.cli.batch.answers import Answer, checked, exchange, keep_asking
from broker.cli.batch.bar import ProgressBar
from broker.cli.batch.requests import Line, Requests
from broker.cli.batch.results import Results
from broker.errors import GenerationGone, GenerationNotFound
from broker.events import FINAL_STATUSES
from tokencast_client import Client, Event, TokencastError, Unreachable
from tokencast_client.reconnect import TRY_LATER

_REDRAW = 1.0  # seconds
LOOK_EVERY = 30.0
"""Seconds between two looks at waiting generations: Redis may have lost them, or the event of their end."""
_LOOK_AGAIN = 5.0  # seconds after a look that failed
_LOOKED_AT = 100  # generations of a look; more follow only if one of them has changed without an event
_GONE = {GenerationGone.code, GenerationNotFound.code}


class BatchRun:
    """Runs the requests of a file that have no result."""

    def __init__(
        self, client: Client, requests: Requests, results: Results, bar: ProgressBar, *, look_every: float = LOOK_EVERY
    ) -> None:
        """`look_every`: seconds."""
        self._client = client
        self._requests = requests
        self._results = results
        self._bar = bar
        self._reports: SimpleQueue[Event | TokencastError | str] = SimpleQueue()
        self._waiting: dict[str, str] = {}  # generation → custom_id, those that were looked at last at the end
        self._ids: dict[str, str] = {}  # custom_id → generation
        self._running: set[str] = set()
        self._look_every = look_every
        self._next_look = time.monotonic() + look_every

    def run(self) -> None:
        """Run until each request has a result. Raises Unreachable and RequestRefused."""
        if all(line.custom_id in self._results.done for line in self._requests.lines):
            return
        threading.Thread(target=self._follow, daemon=True).start()
        self._wait_for_opening()
        self._draw(now=True)
        for part in self._requests.parts():
            self._send(part)
            self._work(0)
        while self._waiting:
            self._work(_REDRAW)
        self._bar.clear()

    def _follow(self) -> None:
        """Report all events of the group, or of all generations if a request has a group of its own."""
        own = any(group_of(line.body) is not None for line in self._requests.lines)
        group = "" if own else self._requests.group
        try:
            for event in self._client.activity(
                "latest", group=group, opening=True, on_disconnect=self._lost_connection
            ):
                self._reports.put(event)
        except TokencastError as error:
            self._reports.put(error)

    def _lost_connection(self, _: str) -> None:
        self._reports.put("connection lost, reconnecting")

    def _wait_for_opening(self) -> None:
        """Wait for the first id of the activity: from then on no end is missed."""
        while not isinstance(report := self._reports.get(), Event) or not report.cursor:
            self._handle(report)

    def _work(self, seconds: float) -> None:
        """Handle reports: those that are there, and those of the next `seconds`. Look at generations if it is time."""
        if time.monotonic() >= self._next_look:
            self._look()
        until = time.monotonic() + seconds
        with suppress(Empty):
            while True:
                self._handle(self._reports.get(timeout=max(0.001, until - time.monotonic())))
                self._draw()
                if not self._waiting and self._reports.empty():
                    return
        self._draw(now=seconds > 0)

    def _draw(self, *, now: bool = False) -> None:
        done = self._results.done.values()
        self._bar.draw(len(done), len(done) - sum(done), len(self._running), now=now)

    def _handle(self, report: Event | TokencastError | str) -> None:
        if isinstance(report, TokencastError):
            raise report
        if isinstance(report, str):
            self._bar.note(report)
            self._next_look = time.monotonic()  # the connection was lost
        elif report.name == "gap":
            self._look_at_all()
        elif report.name == "gone":
            self._lost(report.generation)
        elif report.raw:
            self._update(report.data)

    def _look_at_all(self) -> None:
        """Check every generation, because events were missed while the connection was lost."""
        for gid in list(self._waiting):
            self._take(gid, self._ask(lambda gid=gid: exchange(self._client, "GET", f"/v1/generations/{gid}")))

    def _look(self) -> None:
        """Look at the generations that were not looked at for the longest time, and at more while some of them have
        ended or are gone. If the gateway cannot answer, the next look is soon."""
        self._next_look = time.monotonic() + self._look_every
        found = True
        while found and self._waiting:
            found = False
            for gid in list(self._waiting)[:_LOOKED_AT]:
                try:
                    answer = exchange(self._client, "GET", f"/v1/generations/{gid}")
                except Unreachable:
                    answer = None
                if answer is None or answer.status in TRY_LATER:
                    self._next_look = time.monotonic() + min(_LOOK_AGAIN, self._look_every)
                    return
                self._take(gid, answer)
                if gid in self._waiting:
                    self._waiting[gid] = self._waiting.pop(gid)
                else:
                    found = True

    def _take(self, gid: str, answer: Answer) -> None:
        """Handle the response to a request for a generation."""
        if answer.code in _GONE:
            self._lost(gid)
        else:
            self._update(checked(answer))

    # --- sending --------------------------------------------------------------------------------------------------

    def _send(self, part: list[Line]) -> None:
        """Send a part until each of its requests is accepted or refused for good: a limit of the tenant only delays
        it."""
        wait = self._send_once(part)
        while wait is not None:
            later = time.monotonic() + wait
            while (left := later - time.monotonic()) > 0:
                if self._waiting:
                    self._work(left)
                else:
                    time.sleep(left)
            wait = self._send_once(part)

    def _send_once(self, part: list[Line]) -> float | None:
        """Send a part; return the seconds after which to send it again, or None.

        The key of a request consists of the key of its part and its place. So the others, which have a result, are
        replaced by an empty object, which the gateway refuses.
        """
        missing = [line.custom_id not in self._results.done for line in part]
        if not any(missing):
            return None
        bodies = [self._body(line) if wanted else {} for line, wanted in zip(part, missing, strict=True)]
        headers = {"Idempotency-Key": self._requests.key_of(part)}
        sent = {"generations": bodies}
        answer = self._ask(lambda: exchange(self._client, "POST", "/v1/generations/batch", sent, headers))
        waits: list[float] = []
        for line, wanted, item in zip(part, missing, checked(answer)["data"], strict=True):
            if not wanted:
                continue
            if "id" in item:
                self._accept(item, line.custom_id)
            elif item["error"]["status"] in TRY_LATER:
                waits.append(float(item["error"].get("retry_after") or 1))
            else:
                error = {name: item["error"].get(name) for name in ("message", "type", "param", "code")}
                self._write(line.custom_id, item["error"]["status"], answer.request_id, {"error": error})
        return min(waits, default=None)

    def _body(self, line: Line) -> Json:
        """Return a body with the group of the batch, unless it has one. An invalid `tokencast` is the gateway's to
        refuse."""
        options = line.body.get("tokencast")
        if options is not None and not isinstance(options, dict):
            return line.body
        named = {name: value for name, value in cast(Json, options or {}).items() if value is not None}
        return {**line.body, "tokencast": {"group": self._requests.group, **named}}

    def _accept(self, generation: Json, custom_id: str) -> None:
        """Wait for a generation. It replaces an earlier one of the same request, which Redis has lost together with the
        idempotency key."""
        gid, before = generation["id"], self._ids.get(custom_id)
        if before is not None and before != gid:
            self._forget(before)
        self._ids[custom_id] = gid
        self._waiting[gid] = custom_id
        self._update(generation)

    # --- results --------------------------------------------------------------------------------------------------

    def _update(self, generation: Json) -> None:
        gid, status = generation["id"], generation["status"]
        if gid not in self._waiting:
            return
        if status in FINAL_STATUSES:
            self._finish(generation)
        elif status == "in_progress":
            self._running.add(gid)
        else:
            self._running.discard(gid)

    def _finish(self, generation: Json) -> None:
        """Write the result of a generation that has ended: the response of the chat route."""
        gid, error = generation["id"], cast(Json, generation["error"] or {})

        def answered() -> Answer:
            return exchange(self._client, "GET", f"/v1/chat/completions/{gid}")

        def is_its_own(answer: Answer) -> bool:
            """Return whether an error is that of the generation, and not one of the gateway."""
            return "error" in answer.body and answer.code == error.get("code") and generation["status"] != "completed"

        answer = self._ask(answered, is_its_own)
        if answer.code in _GONE and not is_its_own(answer):
            self._lost(gid)
            return
        custom_id = self._forget(gid)
        if custom_id is not None:
            self._write(custom_id, answer.status, gid, answer.body)

    def _write(self, custom_id: str, status: int, request_id: str, body: Json) -> None:
        self._bar.clear()  # results may go to the same terminal
        self._results.write(custom_id, {"status_code": status, "request_id": request_id, "body": body}, None)

    def _lost(self, gid: str) -> None:
        """Write the result of a generation that was deleted, or has expired."""
        custom_id = self._forget(gid)
        if custom_id is not None:
            self._bar.clear()
            message = "The generation was deleted, or has expired, before its result was read."
            self._results.write(custom_id, None, {"code": GenerationGone.code, "message": message})

    def _forget(self, gid: str) -> str | None:
        self._running.discard(gid)
        return self._waiting.pop(gid, None)

    def _ask(self, request: Callable[[], Answer], is_final: Callable[[Answer], bool] = lambda _: False) -> Answer:
        return keep_asking(self._client.base_url, request, is_final)


def group_of(body: Json) -> str | None:
    """Return the group that a request names."""
    options = body.get("tokencast")
    return cast(Json, options).get("group") if isinstance(options, dict) else None

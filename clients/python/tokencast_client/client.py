"""The client for programs without asyncio. `async_client.py` has the same methods for programs with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from tokencast_client import operations
from tokencast_client.configuration import gateway_url, key_of
from tokencast_client.errors import Misconfigured, WaitTimeout, error_from
from tokencast_client.exchange import Exchange
from tokencast_client.operations import PAGE, Operation, Time, Words
from tokencast_client.outcomes import final_text
from tokencast_client.reconnect import TRY_LATER
from tokencast_client.records import Delivery, Event, Generation, Group, Items, Queue, RetryResult, Token, Upstream
from tokencast_client.streams.feeds import ActivityFeed, Feed, GenerationFeed, ManyFeed
from tokencast_client.streams.stream import Stream
from tokencast_client.streams.transcript import Transcript
from tokencast_client.transport import headers_for, options_for, translated, unreachable, unusable

T = TypeVar("T")
OnDisconnect = Callable[[str], object]


class Client:
    """Client of a gateway, and a context manager. It may be used by several threads.

    `base_url` and `api_key` default to TOKENCAST_URL (http://127.0.0.1:8000) and TOKENCAST_API_KEY. `timeout`: seconds
    for a response; streams have none. `max_retries`: repetitions of a request after a lost connection or a response
    that asks for it (429, 502, 503, 504); nothing is enqueued twice. `http_client` replaces the HTTP client, for other
    proxies or certificates; it is not closed.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        max_retries: int = 2,
        http_client: httpx2.Client | None = None,
    ) -> None:
        self.base_url = gateway_url(base_url)
        self._headers = headers_for(key_of(api_key))
        self._max_retries = max_retries
        self._owns_http = http_client is None
        try:
            self._http = http_client or httpx2.Client(**options_for(self.base_url, timeout))
        except Misconfigured:
            raise
        except (ImportError, httpx2.InvalidURL, ValueError) as error:
            raise unusable(self.base_url, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        if self._owns_http:
            self._http.close()

    # --- enqueue --------------------------------------------------------------------------------------------------

    def enqueue(
        self,
        body: Mapping[str, Any] | None = None,
        /,
        *,
        model: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        priority: int | None = None,
        delay_seconds: float | None = None,
        run_at: float | None = None,
        queue_timeout: float | None = None,
        group: str | None = None,
        webhook: str | Mapping[str, Any] | None = None,
        on_upstream_error: str | None = None,
        ttl_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        **parameters: Any,
    ) -> Generation:
        """Enqueue a completion and return its generation.

        `parameters` are those of chat.completions, such as `temperature`. `body` is a whole request, whose fields the
        arguments replace. The same `idempotency_key` with the same request returns the same generation; by default each
        call has a key of its own.
        """
        request = operations.generation_request(
            body,
            model=model,
            messages=messages,
            priority=priority,
            delay_seconds=delay_seconds,
            run_at=run_at,
            queue_timeout=queue_timeout,
            group=group,
            webhook=webhook,
            on_upstream_error=on_upstream_error,
            ttl_seconds=ttl_seconds,
            metadata=metadata,
            **parameters,
        )
        return self._send(operations.enqueue(request, idempotency_key))

    def enqueue_batch(self, bodies: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None) -> Items:
        """Enqueue up to 1,000 requests. Return for each, in order, its generation, or the error with which it was
        refused. `generation_request()` makes a body from the arguments of `enqueue`."""
        return self._send(operations.enqueue_batch(bodies, idempotency_key))

    def retry(self, id: str, *, idempotency_key: str | None = None) -> Generation:  # noqa: A002
        """Enqueue the request of a generation that has ended again, as a new generation."""
        return self._send(operations.retry(id, idempotency_key))

    def retry_all(
        self,
        *,
        status: Words = "failed",
        code: str | None = None,
        group: str | None = None,
        since: Time | None = None,
        until: Time | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        tenant: str | None = None,
        idempotency_key: str | None = None,
    ) -> RetryResult:
        """Retry all generations that match, the newest first, up to 1,000. `dry_run`: only list them."""
        named = {"status": [status] if isinstance(status, str) else [*status], "code": code, "group": group}
        conditions = {**named, "since": since, "until": until, "limit": limit, "dry_run": dry_run, "tenant": tenant}
        return self._send(operations.retry_all(conditions, idempotency_key))

    # --- read -----------------------------------------------------------------------------------------------------

    def get(self, id: str, *, include_request: bool = False) -> Generation:  # noqa: A002
        """Return a generation with its text so far."""
        return self._send(operations.get(id, include_request=include_request))

    def list(
        self,
        *,
        status: Words | None = None,
        model: str | None = None,
        code: str | None = None,
        group: str | None = None,
        metadata: Mapping[str, str] | None = None,
        since: Time | None = None,
        until: Time | None = None,
        tenant: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> Generator[Generation]:
        """Yield the generations that match all filters, newest first, without their texts: all of them, or at most
        `limit`. They are read page by page as the iterator advances.

        `since` and `until`: time of creation: unix seconds, ISO 8601 or a datetime. `after`: the id of a generation.
        """
        named = {"status": status, "model": model, "code": code, "group": group, "tenant": tenant}
        filters = {**named, "since": since, "until": until}
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = self._send(operations.list_page(filters, metadata, size, after))
            yield from page.data
            left = None if left is None else left - len(page.data)
            after = page.last_id
            if after is None:
                return

    def follow(
        self,
        id: str,  # noqa: A002
        after: str | None = None,
        *,
        speed: float | None = None,
        on_disconnect: OnDisconnect | None = None,
    ) -> Generator[Event]:
        """Yield the events of a generation, each exactly once, to the terminal one, over lost connections and restarts
        of the gateway.

        `after`: a cursor, or `latest` for new events only; default: from the beginning. After a `reset` the text so far
        is void; `stream_text` takes care of that. There are no events if `after` is the cursor of the last one.
        `speed` replays the events at their recorded times, that many times faster. `on_disconnect` is called with the
        reason when a connection is lost.
        """
        return self._events(self._stream(GenerationFeed(id, after, speed), on_disconnect=on_disconnect))

    def follow_all(self, ids: Iterable[str], *, on_disconnect: OnDisconnect | None = None) -> Generator[Event]:
        """Like `follow`, for up to 100 generations on one connection, until all have ended. An id can be followed by
        `@` and a cursor. `event.generation` tells whose event it is."""
        return self._events(self._stream(ManyFeed(ids), on_disconnect=on_disconnect))

    def stream_text(self, id: str, *, on_disconnect: OnDisconnect | None = None) -> Generator[str]:  # noqa: A002
        """Yield the whole text so far, each time it changes. After a `reset` it begins again. Raises GenerationFailed
        and GenerationCancelled."""
        transcript, after = Transcript(), None
        while True:
            for event in self.follow(id, after, on_disconnect=on_disconnect):
                if event.name == "gap":  # the rest of the history is missing, but not the text
                    generation = self.get(id)
                    transcript, after = Transcript(generation.text), generation.cursor
                    yield transcript.text
                    break
                if transcript.add(event):
                    yield transcript.text
            else:
                final_text(self.get(id))
                return

    def wait(self, id: str, *, timeout: float | None = None) -> Generation:  # noqa: A002
        """Return a generation once it has ended, in whatever way. Raises WaitTimeout after `timeout` seconds; the
        generation continues."""
        stream = self._stream(GenerationFeed(id, "latest"), timeout=timeout)
        for _ in self._events(stream):
            pass
        if stream.expired and timeout is not None:
            raise WaitTimeout(id, timeout)
        return self.get(id)

    def text(self, id: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Return the final text of a generation once it has completed. Raises GenerationFailed, GenerationCancelled and
        WaitTimeout."""
        return final_text(self.wait(id, timeout=timeout))

    def activity(
        self,
        after: str | None = None,
        *,
        group: str | None = None,
        tenant: str | None = None,
        opening: bool = False,
        on_disconnect: OnDisconnect | None = None,
    ) -> Generator[Event]:
        """Yield the lifecycle events of all generations, or of a group, without end. `event.data` is the generation
        without its text.

        `after`: an id of this stream, or `latest`; default: from the recorded past. An event can be delivered twice.
        After a `gap` some were lost: list the generations again. `opening`: also yield events without data, such as the
        first one after `latest`; from then on nothing is missed.
        """
        feed = ActivityFeed(after, group, tenant, opening=opening)
        return self._events(self._stream(feed, on_disconnect=on_disconnect))

    def token(self, id: str, *, ttl_seconds: int | None = None) -> Token:  # noqa: A002
        """Create a stream token, with which a browser can read this generation, and nothing else, for at most ten
        minutes."""
        return self._send(operations.token(id, ttl_seconds, self.base_url))

    def models(self) -> Sequence[str]:
        """Return the models that the gateway lists; one can be a pattern."""
        return self._send(operations.models())

    # --- end ------------------------------------------------------------------------------------------------------

    def cancel(self, id: str) -> Generation:  # noqa: A002
        """Cancel a generation. One that has ended does not change."""
        return self._send(operations.cancel(id))

    def delete(self, id: str) -> None:  # noqa: A002
        """Delete a generation. A running one is cancelled first, and its followers get `gone`."""
        self._send(operations.delete(id))

    # --- groups and webhooks --------------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        """Return how many generations of a group have each status, and their tokens."""
        return self._send(operations.group(name))

    def cancel_group(self, name: str) -> Group:
        """Cancel all waiting and running generations of a group."""
        return self._send(operations.cancel_group(name))

    def deliveries(self, id: str) -> Sequence[Delivery]:  # noqa: A002
        """Return the attempts to deliver the webhook of a generation, oldest first."""
        return self._send(operations.deliveries(id))

    def redeliver(self, id: str, n: int) -> None:  # noqa: A002
        """Deliver a webhook again, at once."""
        self._send(operations.redeliver(id, n))

    # --- queue and upstreams --------------------------------------------------------------------------------------

    def queue(self) -> Queue:
        """Return what waits, of all tenants, and why."""
        return self._send(operations.queue())

    def pause(self, *, upstream: str | None = None, tenant: str | None = None) -> Queue:
        """Start no further generation, of all or of one upstream or tenant. For operators."""
        return self._send(operations.pause(paused=True, upstream=upstream, tenant=tenant))

    def resume(self, *, upstream: str | None = None, tenant: str | None = None) -> Queue:
        """End a pause. For operators."""
        return self._send(operations.pause(paused=False, upstream=upstream, tenant=tenant))

    def upstreams(self) -> Sequence[Upstream]:
        """Return the upstreams: limits, calls, circuit."""
        return self._send(operations.upstreams())

    def update_upstream(self, name: str, **changes: int | bool | None) -> Upstream:
        """Change `max_concurrency`, `requests_per_minute`, `tokens_per_minute` or `paused` at run time; None restores
        the configured limit. For operators."""
        return self._send(operations.update_upstream(name, changes))

    # --- anything else --------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a request to any route and return the JSON of the response; None for an empty one."""
        return self._send(operations.request(method, path, body, params=params, headers=headers))

    def raw_request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request to any route, once, and return the response whatever its status. Raises Unreachable."""
        try:
            return self._request(operations.request(method, path, body, params=params, headers=headers))
        except httpx2.RequestError as error:
            raise translated(error, self.base_url) from None

    def _request(self, operation: Operation[Any]) -> httpx2.Response:
        return self._http.request(
            operation.method,
            self.base_url + operation.path,
            params=operation.params or None,
            content=operation.content,
            headers={**self._headers, **operation.headers},
        )

    def _send(self, operation: Operation[T]) -> T:
        exchange = Exchange(operation, self.base_url, self._max_retries)
        while True:
            try:
                delay = exchange.answered(self._request(operation))
            except httpx2.RequestError as error:
                delay = exchange.broken(error)
            if delay is None:
                return exchange.result
            time.sleep(delay)

    def _stream(self, feed: Feed, *, timeout: float | None = None, on_disconnect: OnDisconnect | None = None) -> Stream:
        return Stream(feed, self.base_url, attempts=self._max_retries, timeout=timeout, on_disconnect=on_disconnect)

    def _events(self, stream: Stream) -> Generator[Event]:
        while not stream.ended:
            try:
                yield from self._connection(stream)
            except httpx2.TransportError as error:
                stream.lost(unreachable(error, self.base_url), silent=isinstance(error, httpx2.ReadTimeout))
            except httpx2.RequestError as error:
                raise translated(error, self.base_url) from None
            if not stream.ended:
                time.sleep(stream.delay())

    def _connection(self, stream: Stream) -> Generator[Event]:
        request = stream.request()
        with self._http.stream(
            "GET",
            self.base_url + request.path,
            params=request.params or None,
            headers={**self._headers, **request.headers},
            timeout=httpx2.Timeout(10.0, read=request.read_timeout),
        ) as response:
            if response.status_code not in (200, 204, *TRY_LATER):
                response.read()
                raise error_from(response.status_code, response.headers, response.content, self.base_url)
            if not stream.opened(response.status_code, response.headers):
                return
            for data in response.iter_bytes():
                yield from stream.receive(data)
                if stream.leaves:
                    return

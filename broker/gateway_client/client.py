"""Client of a gateway: JSON requests, and event streams that reconnect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import httpx2

from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.gateway_client.connection import open_http, unreachable
from broker.gateway_client.reconnect import GIVE_UP, TRY_LATER, ReconnectDelay
from broker.gateway_client.responses import check_answer
from broker.settings.client_settings import ClientSettings

Json = dict[str, Any]
Params = tuple[tuple[str, str], ...]

TERMINAL = frozenset({"completed", "failed", "cancelled", "gone"})
_PAGE = 100  # generations, the maximum that the gateway lists at once
_READ_TIMEOUT = 60.0  # seconds; a gateway sends a comment every 15, so the connection is dead by then


class RequestRefused(BrokerError):
    """The gateway responded with an error; the message is the gateway's."""

    code = "refused"


@dataclass(frozen=True, slots=True)
class Received:
    """One event as received. `id` is the cursor from which to resume; `generation` is set if several are followed."""

    id: str
    event: str
    data: str
    generation: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON response of any status. `wait`: its Retry-After header."""

    status: int
    request_id: str
    wait: str
    body: Json

    @property
    def code(self) -> str | None:
        """The code of its error."""
        error: object = self.body.get("error")
        return cast(Json, error).get("code") if isinstance(error, dict) else None


class Client:
    """Client of a gateway, and a context manager. Raises Unreachable, RequestRefused, GenerationNotFound and
    GenerationGone.
    """

    def __init__(self, settings: ClientSettings, *, within: float | None = None) -> None:
        """`within`: timeout of a response in seconds, instead of the default."""
        self.url = settings.url.rstrip("/")
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        timeout = httpx2.Timeout(within) if within else httpx2.Timeout(10.0, read=_READ_TIMEOUT)
        self._http = open_http(self.url, headers, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: str | int) -> Json:
        """Send a GET request; return the JSON of the response."""
        return self._json("GET", path, lambda: self._http.get(path, params=params))

    def post(self, path: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
        """Send a POST request; return the JSON of the response."""
        return self._json("POST", path, lambda: self._http.post(path, json=body, headers=headers))

    def patch(self, path: str, body: Json) -> Json:
        """Send a PATCH request; return the JSON of the response."""
        return self._json("PATCH", path, lambda: self._http.patch(path, json=body))

    def delete(self, path: str) -> None:
        """Send a DELETE request."""
        self._answer(lambda: self._http.delete(path))

    def exchange(
        self, method: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request and return the response, also that of an error; an authentication error is raised, and a
        response that is no JSON object."""
        try:
            response = self._http.request(method, path, json=body, headers=headers)
        except httpx2.TransportError as error:
            raise unreachable(error, self.url) from None
        except httpx2.RequestError:
            raise RequestRefused(f"The server at {self.url} is not Tokencast.") from None
        if response.status_code in (401, 403):
            raise _error_from(response, self.url)
        try:
            answer: object = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict) and response.status_code in TRY_LATER:  # the page of a proxy
            answer = {}
        if not isinstance(answer, dict):
            raise RequestRefused(f"The server at {self.url} is not Tokencast.")
        named = (response.headers.get("x-request-id", ""), response.headers.get("retry-after", ""))
        return Answer(response.status_code, *named, cast(Json, answer))

    def generations(self, limit: int, **filters: str | None) -> Iterator[Json]:
        """Yield up to `limit` generations, newest first, page by page. `filters`: query parameters; None is absent."""
        params = {name: value for name, value in filters.items() if value}
        while limit > 0:
            page = self.get("/v1/generations", limit=min(limit, _PAGE), **params)
            yield from page["data"]
            limit -= len(page["data"])
            if not page["has_more"]:
                return
            # With filters it can be an id that is not on the page. An empty page skipped expired generations.
            if last := page.get("last_id") or (page["data"][-1]["id"] if page["data"] else None):
                params["after"] = last

    def models(self) -> list[Json]:
        """Return the models that the gateway lists."""
        return self.get("/v1/models")["data"]

    def default_model(self) -> str:
        """Return the first model that the gateway lists by name."""
        models = [str(model["id"]) for model in self.models()]
        named = [model for model in models if not set(model) & set("*?[")]
        if not named:
            raise RequestRefused(f"The gateway at {self.url} lists no model; choose one with --model.")
        return named[0]

    def follow(
        self, gid: str, after: str | None, *, speed: float | None = None, notice: Callable[[str], None]
    ) -> Iterator[Received]:
        """Yield every event after `after` exactly once, up to the terminal one, and reconnect as needed. `speed`
        replays the recorded arrival times, at a multiple of the original speed.

        Ends without a terminal event only if `after` is the cursor of the terminal event. `notice` is called when a
        connection is lost.
        """
        always = (("speed", f"{speed:g}"),) if speed is not None else ()
        first = (("after", after),) if after else ()
        for received in self._events(f"/v1/generations/{gid}/events", always, first, notice):
            if received.data:
                yield received
                if received.event in TERMINAL:
                    return

    def follow_all(self, named: Sequence[str], *, notice: Callable[[str], None]) -> Iterator[Received]:
        """Like `follow`, for several generations, up to the last terminal event. A name is `ID` or `ID@CURSOR`."""
        cursors: dict[str, tuple[int, ...]] = {}
        running = {name.partition("@")[0] for name in named}
        for received in self._events("/v1/events", tuple(("generation", name) for name in named), (), notice):
            if not received.data:
                continue
            wrapped = cast(Json, json.loads(received.data))
            gid, cursor, event = str(wrapped["generation"]), str(wrapped["cursor"]), received.event
            place = tuple(map(int, cursor.split("-")))
            again = place <= cursors.get(gid, (0, 0)) and event not in ("reset", "gap", "gone")
            if again or gid not in running:
                continue  # already yielded by the previous connection, after its last id
            cursors[gid] = place
            yield Received(cursor, event, json.dumps(wrapped["data"], ensure_ascii=False), gid)
            if event in TERMINAL:
                running.discard(gid)
                if not running:
                    return

    def activity(
        self, after: str | None, *, notice: Callable[[str], None], group: str = "", opening: bool = False
    ) -> Iterator[Received]:
        """Yield the lifecycle events of all generations, or of a group, without end. `after` is an id of this stream,
        or `latest`. An event can be delivered twice. `opening`: also yield the events without data, such as the first
        one after `latest`: from then on nothing is missed."""
        first = (("after", after),) if after else ()
        always = (("group", group),) if group else ()
        events = self._events("/v1/activity", always, first, notice)
        return (received for received in events if received.data or opening)

    def _events(self, path: str, always: Params, first: Params, notice: Callable[[str], None]) -> Iterator[Received]:
        """Yield the events of a stream; reconnect after the last id received. `first` are parameters that are sent
        until there is a last id. Ends when the gateway responds with 204."""
        last_id, pause = "", ReconnectDelay(self.url)
        while True:
            began = last_id
            try:
                for received in self._connection(path, always if last_id else (*always, *first), last_id, pause):
                    last_id = received.id or last_id
                    yield received
                if pause.ended:
                    return
            except (httpx2.SSEError, httpx2.DecodingError):
                raise RequestRefused(f"The server at {self.url} is not Tokencast.") from None
            except httpx2.TransportError as error:
                if not pause.connected:
                    raise unreachable(error, self.url) from None
                if not pause.lost:
                    notice("connection lost, reconnecting")
            pause.wait(progress=last_id != began)

    def _connection(self, path: str, params: Params, last_id: str, pause: ReconnectDelay) -> Iterator[Received]:
        """Yield the events of one response; none if the gateway requests a later retry."""
        resume = {"Last-Event-ID": last_id} if last_id else {}
        with self._http.sse(path, params=params, headers=resume, max_event_size=None) as source:
            response = source.response
            if response.status_code in TRY_LATER:
                pause.set_retry_after(response.headers.get("retry-after", ""))
                return
            pause.ended = response.status_code == 204
            if pause.ended:
                return
            if response.status_code != 200:
                response.read()
                raise _error_from(response, self.url)
            pause.contact()
            try:
                for sent in source:
                    if sent.retry is not None:
                        pause.retry = min(sent.retry / 1000, GIVE_UP)
                    yield Received(sent.id, sent.event, sent.data)
            finally:
                pause.contact()

    def _answer(self, request: Callable[[], httpx2.Response]) -> httpx2.Response:
        try:
            response = request()
        except httpx2.TransportError as error:
            raise unreachable(error, self.url) from None
        except httpx2.RequestError:  # the body does not match its Content-Encoding
            raise RequestRefused(f"The server at {self.url} is not Tokencast.") from None
        except UnicodeError:
            raise RequestRefused("The request contains characters that cannot be sent.") from None
        if response.status_code >= 400:
            raise _error_from(response, self.url)
        return response

    def _json(self, method: str, path: str, request: Callable[[], httpx2.Response]) -> Json:
        response = self._answer(request)
        try:
            return check_answer(method, path, response.json())
        except ValueError:
            raise RequestRefused(f"The server at {self.url} is not Tokencast.") from None


def _error_from(response: httpx2.Response, url: str) -> BrokerError:
    """Convert an error response, with the gateway's message. A 404 about anything but a generation, such as a model, is
    a RequestRefused."""
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return RequestRefused(f"{url} responded with {response.status_code} {response.reason_phrase}; is it Tokencast?")
    if code == GenerationNotFound.code:
        return GenerationNotFound(message)
    if code == GenerationGone.code:
        return GenerationGone(message)
    return RequestRefused(message)

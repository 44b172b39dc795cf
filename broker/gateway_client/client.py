"""The gateway as the command line sees it: JSON requests, and a stream that survives its connection."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import httpx2

from broker.errors import BrokerError, GenerationGone, GenerationNotFound
from broker.gateway_client.connection import Unreachable, open_http, unreachable
from broker.gateway_client.shapes import check_answer
from broker.settings.settings import ClientSettings

Json = dict[str, Any]
Params = tuple[tuple[str, str], ...]

TERMINAL = frozenset({"completed", "failed", "cancelled", "gone"})
_PAGE = 100  # generations, the most that the gateway lists at once
_SILENCE = 60.0  # seconds; a gateway sends a comment every 15, so by then the connection is dead
_GIVE_UP = 120.0  # seconds without a word from a gateway that was there before
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 5.0


class RequestRefused(BrokerError):
    """The gateway answers with an error; the message is its own."""

    code = "refused"


@dataclass(frozen=True, slots=True)
class Received:
    """One event of a generation, as it came; `id` is the cursor to go on from. Where several are followed,
    `generation` says whose it is."""

    id: str
    event: str
    data: str
    generation: str = ""


class Client:
    """A context manager. Raises Unreachable, Refused, GenerationNotFound and GenerationGone."""

    def __init__(self, settings: ClientSettings, *, within: float | None = None) -> None:
        """`within`: seconds, instead of the usual patience, that an answer may take."""
        self.url = settings.url.rstrip("/")
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        timeout = httpx2.Timeout(within) if within else httpx2.Timeout(10.0, read=_SILENCE)
        self._http = open_http(self.url, headers, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: str | int) -> Json:
        return self._json("GET", path, lambda: self._http.get(path, params=params))

    def post(self, path: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
        return self._json("POST", path, lambda: self._http.post(path, json=body, headers=headers))

    def delete(self, path: str) -> None:
        self._answer(lambda: self._http.delete(path))

    def generations(self, status: str | None, limit: int) -> Iterator[Json]:
        """The newest first, at most `limit`, page by page."""
        params: dict[str, str | int] = {"status": status} if status else {}
        while limit > 0:
            page = self.get("/v1/generations", limit=min(limit, _PAGE), **params)
            yield from page["data"]
            limit -= len(page["data"])
            if not page["has_more"]:
                return
            if page["data"]:  # an empty page has dropped what had expired: asked for again, it goes on
                params["after"] = page["data"][-1]["id"]

    def models(self) -> list[Json]:
        """As the gateway lists them."""
        return self.get("/v1/models")["data"]

    def default_model(self) -> str:
        """The first one that the gateway lists."""
        models = [str(model["id"]) for model in self.models()]
        named = [model for model in models if not set(model) & set("*?[")]
        if not named:
            raise RequestRefused(f"The gateway at {self.url} lists no model; choose one with --model.")
        return named[0]

    def follow(
        self, gid: str, after: str | None, *, speed: float | None = None, notice: Callable[[str], None]
    ) -> Iterator[Received]:
        """Every event behind `after`, once each, up to the terminal one, over as many connections as it takes; with
        `speed` as they came, so many times as fast.

        Ends without a terminal event only where `after` is the end already. `notice` is told of lost connections.
        """
        always = (("speed", f"{speed:g}"),) if speed is not None else ()
        first = (("after", after),) if after else ()
        for received in self._events(f"/v1/generations/{gid}/events", always, first, notice):
            if received.data:
                yield received
                if received.event in TERMINAL:
                    return

    def follow_all(self, named: Sequence[str], *, notice: Callable[[str], None]) -> Iterator[Received]:
        """As `follow`, of several generations, up to the last one's terminal event. A name is `ID` or `ID@CURSOR`."""
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
                continue  # it came between the last connection's last id and its end
            cursors[gid] = place
            yield Received(cursor, event, json.dumps(wrapped["data"], ensure_ascii=False), gid)
            if event in TERMINAL:
                running.discard(gid)
                if not running:
                    return

    def activity(self, after: str | None, *, notice: Callable[[str], None]) -> Iterator[Received]:
        """What happens to all generations, without end; `after` is an id of this stream, or `latest`. An event may come
        twice."""
        first = (("after", after),) if after else ()
        return (received for received in self._events("/v1/activity", (), first, notice) if received.data)

    def _events(self, path: str, always: Params, first: Params, notice: Callable[[str], None]) -> Iterator[Received]:
        """What one stream says, and its next ones, each behind the last id of the one before. `first` are parameters
        for as long as there is none. Ends where the gateway says that there is no more."""
        last_id, pause = "", _Pause(self.url)
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

    def _connection(self, path: str, params: Params, last_id: str, pause: _Pause) -> Iterator[Received]:
        """One response's events; nothing where the gateway asks for a later try."""
        resume = {"Last-Event-ID": last_id} if last_id else {}
        with self._http.sse(path, params=params, headers=resume, max_event_size=None) as source:
            response = source.response
            if response.status_code in (429, 502, 503, 504):
                pause.asked_for(response.headers.get("retry-after", ""))
                return
            pause.ended = response.status_code == 204
            if pause.ended:
                return
            if response.status_code != 200:
                response.read()
                raise _refusal(response, self.url)
            pause.contact()
            try:
                for sent in source:
                    if sent.retry is not None:
                        pause.retry = min(sent.retry / 1000, _GIVE_UP)
                    yield Received(sent.id, sent.event, sent.data)
            finally:
                pause.contact()

    def _answer(self, request: Callable[[], httpx2.Response]) -> httpx2.Response:
        try:
            response = request()
        except httpx2.TransportError as error:
            raise unreachable(error, self.url) from None
        except httpx2.RequestError:  # a body that is not encoded as its headers say
            raise RequestRefused(f"The server at {self.url} is not Tokencast.") from None
        except UnicodeError:
            raise RequestRefused("The request contains characters that cannot be sent.") from None
        if response.status_code >= 400:
            raise _refusal(response, self.url)
        return response

    def _json(self, method: str, path: str, request: Callable[[], httpx2.Response]) -> Json:
        response = self._answer(request)
        try:
            return check_answer(method, path, response.json())
        except ValueError:
            raise RequestRefused(f"The server at {self.url} is not Tokencast.") from None


class _Pause:
    """How long to wait before the next connection: what the server last asked for, else ever longer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0
        self._heard = time.monotonic()
        self.connected = False
        self.ended = False
        self.retry: float | None = None

    @property
    def lost(self) -> bool:
        return self._failures > 0

    def contact(self) -> None:
        self.connected, self._heard = True, time.monotonic()

    def asked_for(self, seconds: str) -> None:
        """A Retry-After header."""
        self.contact()
        if seconds.isascii() and seconds.isdigit():
            self.retry = min(float(seconds), _GIVE_UP)

    def wait(self, *, progress: bool) -> None:
        if time.monotonic() - self._heard > _GIVE_UP:
            raise Unreachable(f"{self._url} has not responded for {_GIVE_UP:.0f} s")
        self._failures = 0 if progress else self._failures + 1
        growing = min(_FIRST_WAIT * 2**self._failures, _LONGEST_WAIT) * random.uniform(0.5, 1)
        time.sleep(growing if self.retry is None else self.retry)
        self.retry = None


def _refusal(response: httpx2.Response, url: str) -> BrokerError:
    """The gateway's own words. A 404 about anything but a generation, such as a model, is no `not found`."""
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

"""Responses of any status, which a batch writes into its results, and requests that survive restarts of the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from broker.chunks import Json
from tokencast_client import Client, RequestRefused, UnexpectedResponse, Unreachable
from tokencast_client.errors import error_from, seconds
from tokencast_client.reconnect import TRY_LATER, ReconnectDelay


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON response of any status. `retry_after`: the seconds of its Retry-After header."""

    status: int
    request_id: str
    retry_after: float | None
    body: Json

    @property
    def code(self) -> str | None:
        """The code of its error."""
        error: object = self.body.get("error")
        return cast(Json, error).get("code") if isinstance(error, dict) else None


def exchange(
    client: Client, method: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Send a request and return the response, also that of an error; an authentication error is raised, and a response
    that is no JSON object."""
    response = client.raw_request(method, path, body, headers=headers)
    status = response.status_code
    if status in (401, 403):
        raise error_from(status, response.headers, response.content, client.base_url)
    try:
        answer: object = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) and status in TRY_LATER:  # the page of a proxy
        answer = {}
    if not isinstance(answer, dict):
        raise UnexpectedResponse(f"The server at {client.base_url} is not Tokencast.")
    retry_after = seconds(response.headers.get("retry-after"))
    return Answer(status, response.headers.get("x-request-id", ""), retry_after, cast(Json, answer))


def keep_asking(url: str, request: Callable[[], Answer], is_final: Callable[[Answer], bool]) -> Answer:
    """Send a request until it is answered: restarts of the gateway are survived."""
    delay = ReconnectDelay(url, 0)
    delay.contact()
    while True:
        try:
            answer = request()
            if answer.status not in TRY_LATER or is_final(answer):
                return answer
            delay.contact()
            delay.ask(answer.retry_after)
        except Unreachable:
            pass
        time.sleep(delay.next(progress=False))


def checked(answer: Answer) -> Json:
    """Return the body of a successful response. Raises RequestRefused with the gateway's message."""
    if answer.status >= 400:
        error: object = answer.body.get("error")
        message = cast(Json, error).get("message") if isinstance(error, dict) else None
        raise RequestRefused(str(message or f"The gateway responded with {answer.status}."), status=answer.status)
    return answer.body

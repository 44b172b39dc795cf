"""One operation as requests and responses, without I/O: it is repeated if that is safe and can help."""

from __future__ import annotations

from typing import Generic, TypeVar

import httpx2

from tokencast_client.errors import Gone, TokencastError, UnexpectedResponse, Unreachable, error_from
from tokencast_client.operations import Operation
from tokencast_client.reconnect import Attempts
from tokencast_client.transport import translated

T = TypeVar("T")


class Exchange(Generic[T]):
    """The state of one operation. `result` is set once `answered` has returned None."""

    result: T

    def __init__(self, operation: Operation[T], url: str, max_retries: int) -> None:
        self._operation = operation
        self._url = url
        self._attempts = Attempts(max_retries, repeatable=operation.repeatable)

    def answered(self, response: httpx2.Response) -> float | None:
        """Process a response whose body has been read. Return the seconds after which to repeat the request, or None:
        the operation is done. Raises the error of the response if that is final."""
        if response.status_code < 400:
            self.result = self._parse(response)
            return None
        error = error_from(response.status_code, response.headers, response.content, self._url)
        if self._operation.method == "DELETE" and self._attempts.failures and isinstance(error, Gone):
            self.result = self._operation.parse(None)  # the response to an earlier attempt was lost
            return None
        should_retry = response.headers.get("x-should-retry") != "false"
        return self._after(error, response.status_code, error.retry_after, should_retry)

    def broken(self, error: httpx2.RequestError) -> float:
        """Process a failure without a response; return the seconds after which to repeat the request."""
        failure = translated(error, self._url)
        if not isinstance(failure, Unreachable):
            raise failure from None
        return self._after(failure)

    def _after(
        self,
        error: TokencastError,
        status: int | None = None,
        retry_after: float | None = None,
        should_retry: bool = True,
    ) -> float:
        delay = self._attempts.delay(status, retry_after=retry_after, should_retry=should_retry)
        if delay < 0:
            raise error
        return delay

    def _parse(self, response: httpx2.Response) -> T:
        try:
            return self._operation.parse(response.json() if response.content else None)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UnexpectedResponse(f"The server at {self._url} is not Tokencast.") from None

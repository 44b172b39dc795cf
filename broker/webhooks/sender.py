"""One HTTP request of a webhook: to a checked address, for ten seconds at most, without following redirects."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from broker.records import DeliveryError
from broker.runtime.http_tls import ssl_context, tls_failure
from broker.webhooks.addresses import PORTS, AddressRefused, literal_address, resolve

TIMEOUT = 10.0
RESPONSE_BYTES = 64 * 1024
"""Maximum bytes of a response that are read. They are ignored; but a receiver may fail if its response is not read."""
LONGEST_RETRY_AFTER = 3600.0
_CONNECT_TIMEOUT = 4.0  # for one of several addresses


@dataclass(frozen=True, slots=True)
class Answer:
    """Result of a request. `error` is None if the receiver accepted the delivery."""

    status: int | None
    error: DeliveryError | None
    retry_after: float | None = None

    @property
    def host_failed(self) -> bool:
        """Whether it says something about the host, not only about this URL or this delivery."""
        return self.status is None or self.status == 429 or self.status >= 500


class Sender:
    """Posts webhooks. Each on a connection of its own: the pool knows a connection by its address, and another host's
    at the same address was authenticated by another certificate."""

    def __init__(self, *, allow_private: bool, timeout: float = TIMEOUT) -> None:
        """`allow_private`: whether private addresses and http: are called."""
        self._allow_private = allow_private
        self._timeout = timeout
        # No proxy from the environment: it would resolve the name itself.
        self._http = httpx2.AsyncClient(
            verify=ssl_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one receiver's would be sent to another
        )

    async def close(self) -> None:
        """Close the client."""
        await self._http.aclose()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Post a body, with the headers of its signature."""
        response: httpx2.Response | None = None
        error: DeliveryError | None = None
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._request(httpx2.URL(url), headers, body)
                with suppress(httpx2.HTTPError):
                    await _read(response)
        except AddressRefused:
            error = "address_refused"
        except (TimeoutError, httpx2.TimeoutException):
            error = "timeout"
        except httpx2.TransportError as failure:
            error = "tls_failed" if tls_failure(failure, "the receiver") else "connection_failed"
        except OSError:
            error = "name_not_resolved"
        except (httpx2.InvalidURL, ValueError):
            error = "invalid_url"
        finally:
            if response is not None:
                await response.aclose()
        return Answer(None, error) if response is None else _answer_of(response)

    async def _request(self, url: httpx2.URL, headers: dict[str, str], body: bytes) -> httpx2.Response:
        """Send the request to the first address that accepts a connection; return once the response's headers are
        here."""
        if url.scheme != "https" and not self._allow_private:
            raise AddressRefused
        host = url.host.rstrip(".")
        addresses = await resolve(host, url.port or PORTS[url.scheme], allow_private=self._allow_private)
        extensions = {} if literal_address(host) is not None else {"sni_hostname": host}
        headers = {**headers, "host": url.netloc.decode("ascii"), "accept-encoding": "identity", "connection": "close"}
        for number, address in enumerate(addresses, 1):
            request = self._http.build_request(
                "POST", url.copy_with(host=address), content=body, headers=headers, extensions=extensions
            )
            try:
                return await self._http.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if number == len(addresses) or tls_failure(error, "the receiver"):
                    raise
        raise AddressRefused


async def _read(response: httpx2.Response) -> None:
    size = 0
    async for part in response.aiter_raw():
        size += len(part)
        if size >= RESPONSE_BYTES:
            return


def _answer_of(response: httpx2.Response) -> Answer:
    status = response.status_code
    if 200 <= status < 300:
        return Answer(status, None)
    error: DeliveryError = "redirected" if 300 <= status < 400 else "refused"
    return Answer(status, error, _retry_after(response.headers.get("retry-after", "")))


def _retry_after(text: str) -> float | None:
    """Return the seconds of a `Retry-After`, an hour at most; None for text that is neither a number nor a date."""
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, LONGEST_RETRY_AFTER) if seconds > 0 else None

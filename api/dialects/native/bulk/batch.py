"""`POST /v1/generations/batch`: up to 1,000 generations in one request, as a JSON array or one body per line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth import Access
from api.errors import JSONResponse, item_error
from api.middleware.crash import ACCEPTED
from api.requests import FixedRoute, by_method, check_codings, idempotency_key_of, read_body
from api.server.memory import reserve
from broker import records
from broker.broker import Broker
from broker.bulk.operations import BATCH_LIMIT, SLICE, SLICE_BYTES, check_batch
from broker.bulk.submission import Result
from broker.errors import BodyTooLarge, BrokerError, InvalidRequest, StorageUnavailable
from broker.generation import Generation
from broker.json_depth import MAX_DEPTH
from broker.request.body import CompletionRequest
from broker.runtime.logging import REQUEST_ID

logger = logging.getLogger("tokencast.api")

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_TOO_LARGE = "The batch is larger than TOKENCAST_MAX_BATCH allows."


class BatchRoutes:
    """The handler of `/v1/generations/batch`.

    Each item is checked on its own, so an invalid one gets an error in its place and does not affect the others. Items
    are parsed in slices, so that streams continue meanwhile; lines are parsed while the rest of the body is received.
    """

    def __init__(self, broker: Broker, access: Access) -> None:
        self._broker = broker
        self._access = access

    def routes(self) -> list[Route]:
        return [by_method("/v1/generations/batch", FixedRoute, POST=self.create)]

    async def create(self, request: Request) -> Response:
        tenant, key = self._access.tenant(request), idempotency_key_of(request)
        parsed = await self._parse(request, tenant)
        check_batch(len(parsed), key)
        if await request.is_disconnected():
            raise StorageUnavailable("The client disconnected before the batch was created.")
        request.scope[ACCEPTED] = ""
        results = await self._broker.submit_batch(parsed, tenant, key)
        created = sum(isinstance(one, Generation) for one in results)
        logger.info("batch: %d of %d accepted (%s)", created, len(results), REQUEST_ID.get())
        async with reserve(request, tenant):
            data = items_of(results, named=self._access.names_tenants(request))
            return JSONResponse(records.GenerationBatch(data))

    async def _parse(self, request: Request, tenant: str) -> list[CompletionRequest | BrokerError]:
        settings, kind = self._broker.settings, request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() in NDJSON:
            bodies = lines_of(request, settings.max_batch, settings.max_body)
        else:
            bodies = items_in(await read_body(request, settings.max_batch, _TOO_LARGE))
        parsed: list[CompletionRequest | BrokerError] = []
        size = 0
        async for body in bodies:
            if len(parsed) == BATCH_LIMIT:
                async for _ in bodies:  # a client reads no answer before it has sent its body
                    pass
                check_batch(BATCH_LIMIT + 1, None)
            try:
                parsed.append(body if isinstance(body, BrokerError) else await self._broker.parse(body, tenant))
            except BrokerError as error:
                parsed.append(error)
            size += len(body) if isinstance(body, bytes) else 0
            if len(parsed) % SLICE == 0 or size > SLICE_BYTES:
                size = 0
                await asyncio.sleep(0)
        return parsed


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    generations: list[Raw]


async def items_in(body: bytes) -> AsyncIterator[bytes]:
    """Iterate over the items of a JSON body, each still encoded. Raises InvalidRequest."""
    try:
        batch = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=_Batch)
    except msgspec.ValidationError as error:
        message = f'The body must be {{"generations": [body, …]}}: {error}'
        raise InvalidRequest(message, param="generations", code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        message = f"The body has more than {MAX_DEPTH} levels of arrays and objects."
        raise InvalidRequest(message, code="invalid_json") from error
    check_batch(len(batch.generations), None)
    for item in batch.generations:
        yield bytes(item)


async def lines_of(request: Request, most: int, most_of_line: int) -> AsyncIterator[bytes | BrokerError]:
    """Iterate over the lines of a body that are not blank, as they are received; a line that is longer than
    `most_of_line` is an error in its place. Raises BodyTooLarge if the body is longer than `most`."""
    check_codings(request)
    line, length, total = bytearray(), 0, 0
    async for piece in request.stream():
        total += len(piece)
        if total > most:
            raise BodyTooLarge(_TOO_LARGE)
        first, *others = piece.split(b"\n")
        for at, part in enumerate((first, *others)):
            if at > 0 and (ended := _line(line, length)) is not None:
                yield ended
            if at > 0:
                line, length = bytearray(), 0
            length += len(part)
            if length <= most_of_line:
                line += part
    if (ended := _line(line, length)) is not None:
        yield ended


def _line(line: bytearray, length: int) -> bytes | BrokerError | None:
    if len(line) < length:
        return BodyTooLarge()
    return bytes(line) if line.strip() else None


def items_of(results: list[Result], *, named: bool) -> list[Any]:
    """Return the records of a batch's results. `named`: with their tenants."""
    return [one.summary(named=named) if isinstance(one, Generation) else item_error(one) for one in results]

"""A program that uses the Python API. The type checkers check it, and the tests run it with a Redis URL."""

from __future__ import annotations

import asyncio
import sys

from broker import (
    BodyTooLarge,
    Broker,
    BrokerError,
    Cursor,
    Event,
    GapFound,
    Generation,
    GenerationGone,
    GenerationNotFound,
    IdempotencyConflict,
    InvalidCursor,
    InvalidRequest,
    LimitExceeded,
    Misconfigured,
    ModelNotFound,
    StorageUnavailable,
    __version__,
    connect,
)


async def ask(broker: Broker, question: str) -> Generation | None:
    try:
        return await broker.enqueue(
            {"model": "gabforge-coder", "messages": [{"role": "user", "content": question}]},
            idempotency_key=question[:20],
        )
    except LimitExceeded as error:
        seconds: int = error.retry_after
        print("retry in", seconds, "seconds")
    except (BodyTooLarge, IdempotencyConflict, InvalidRequest, ModelNotFound) as error:
        code: str = error.code
        param: str | None = error.param
        print(code, param, error.message)
    return None


async def read(broker: Broker, gid: str, after: Cursor | str = "0-0") -> None:
    try:
        async for event in broker.follow(gid, after):
            show(event)
            after = event.cursor
    except GapFound as gap:
        requested: Cursor = gap.requested
        print("lost:", requested, gap.found)
    except (GenerationGone, GenerationNotFound, InvalidCursor, StorageUnavailable) as error:
        print(error.code)


def show(event: Event) -> None:
    name: str = event.name
    data: bytes = event.data
    attempt: int = event.cursor.attempt
    print(attempt, name, data.decode(), event.at_ms, event.terminal)


async def main(url: str) -> None:
    try:
        async with connect(url) as broker:
            generation = await ask(broker, "Explain the GIL in CPython.")
            if generation is not None:
                cancelled: Generation = await broker.cancel(generation.id)
                text: str = (await broker.get(generation.id)).text
                print(cancelled.status, cancelled.ended, text, cancelled.usage, cancelled.metadata)
                await read(broker, generation.id)
                for listed in (await broker.list(status="cancelled")).data:
                    print(listed.id, listed.created_at, listed.cursor.seq)
                models: dict[str, str] = await broker.models()
                print(models, __version__)
                await broker.delete(generation.id)
    except Misconfigured as error:
        sys.exit(str(error))
    except BrokerError as error:
        print(error.code)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

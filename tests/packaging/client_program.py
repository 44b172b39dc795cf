"""A program that uses the client, sync and async. The type checkers check it, and the tests run it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tokencast_client import (
    AsyncClient,
    Client,
    Event,
    Generation,
    NotFound,
    RateLimited,
    RequestRefused,
    TokencastError,
    Unreachable,
    WebhookEvent,
    WebhookVerificationError,
    generation_request,
    verify_webhook,
)

MESSAGES = [{"role": "user", "content": "Explain the GIL in CPython."}]


def sync() -> None:
    with Client() as client:
        generation: Generation = client.enqueue(model="sim", messages=MESSAGES, priority=1, idempotency_key="order-17")
        for event in client.follow(generation.id, after=None):
            show(event)
        answer: str = client.wait(generation.id, timeout=60).text
        for text in client.stream_text(generation.id):
            assert answer.startswith(text)
        listed = [one.id for one in client.list(status=["completed"], metadata={"batch": "b1"}, limit=10)]
        again: Generation = client.retry(generation.id)
        print(listed, again.retry_of, client.cancel(again.id).status, client.token(again.id).url)
        client.delete(again.id)
        try:
            client.get(again.id)
        except NotFound as error:
            code: str | None = error.code
            print(code, error.param, error.request_id)
        except RequestRefused as error:
            print(error.status, error.message)


async def not_blocking() -> None:
    async with AsyncClient() as client:
        body: dict[str, Any] = generation_request(model="sim", messages=MESSAGES, group="nightly", temperature=0.2)
        for item in await client.enqueue_batch([body, {}]):
            if isinstance(item, RequestRefused):
                status: int = item.status
                print("refused", status)
                continue
            async for event in client.follow(item.id):
                show(event)
            final: str = await client.text(item.id, timeout=60)
            counts: dict[str, int] = (await client.group("nightly")).counts
            assert final
            assert counts["completed"]
        async for one in client.list(group="nightly"):
            print(one.status, one.ended)


def show(event: Event) -> None:
    name: str = event.name
    cursor: str = event.cursor
    print(name, cursor, event.text, event.data, event.terminal)


def receive(body: bytes, headers: Mapping[str, str]) -> str:
    try:
        event: WebhookEvent = verify_webhook(body, headers, ["whsec_bmV3", "whsec_b2xk"])
    except WebhookVerificationError as error:
        return error.message
    return event.data.status


if __name__ == "__main__":
    try:
        sync()
        asyncio.run(not_blocking())
        with Client() as client:
            print(next(client.list(limit=1)).status, True)
    except RateLimited as error:
        print(error.retry_after)
    except (Unreachable, TokencastError) as error:
        print(error)

"""Stores the results of generations in PostgreSQL, each one once, however often its webhook is delivered."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import psycopg
import uvicorn
from psycopg.types.json import Jsonb
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

DATABASE_URL = os.environ["DATABASE_URL"]
KEY = os.environ.get("TOKENCAST_API_KEY", "unused")

webhook = Webhook(os.environ["TOKENCAST_WEBHOOK_SECRET"])
tokencast = httpx2.AsyncClient(
    base_url=os.environ.get("TOKENCAST_URL", "http://127.0.0.1:8000"),
    headers={"authorization": f"Bearer {KEY}"},
    timeout=5,  # a delivery that is not answered within ten seconds is repeated
)

INSERT = """
INSERT INTO results VALUES (%s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), to_timestamp(%s))
ON CONFLICT (webhook_id) DO NOTHING
"""


async def hook(request: Request) -> Response:
    body = await request.body()
    try:
        event = webhook.verify(body, dict(request.headers))
    except (WebhookVerificationError, ValueError):
        return Response(status_code=401)
    generation = event["data"]
    try:
        response = await tokencast.get(f"/v1/generations/{generation['id']}")  # the webhook has no text
    except httpx2.HTTPError:
        return Response(status_code=503)  # anything but 2xx: it is delivered again
    if response.status_code not in (200, 404, 410):  # 404 and 410: it was deleted, or has expired
        return Response(status_code=503)
    row = (
        request.headers["webhook-id"],  # the same at each repetition
        generation["id"],
        generation["status"],
        response.json()["text"] if response.status_code == 200 else None,
        Jsonb(generation["usage"]),
        Jsonb(generation["error"]),
        Jsonb(generation["metadata"]),
        generation["created_at"],
        generation["ended_at"],
    )
    try:
        async with await psycopg.AsyncConnection.connect(DATABASE_URL, connect_timeout=3) as database:
            if (await database.execute(INSERT, row)).rowcount == 1:
                pass  # What must happen once for each result belongs here, in the same transaction.
    except psycopg.OperationalError:
        return Response(status_code=503)
    return Response(status_code=204)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
    async with await psycopg.AsyncConnection.connect(DATABASE_URL) as database:
        await database.execute(Path(__file__).with_name("schema.sql").read_text("utf-8"))
    async with tokencast:
        yield


app = Starlette(routes=[Route("/hook", hook, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "9000")))

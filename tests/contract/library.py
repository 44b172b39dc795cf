"""Areas: the Python interface, and the settings."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from broker.settings.client_settings import ClientSettings
from broker.settings.secret_files import SECRETS
from broker.settings.settings import Settings
from tests.contract.layout import laid_out
from tests.contract.recorder import Recorder
from tests.contract.stage import Stage, prompt
from tests.support import DEADLINE, ROOT, clean_environment

PROGRAM = """
import asyncio, json, os, sys
import broker
from broker import Broker, BrokerError, connect

async def main():
    body = json.loads(sys.argv[1])
    print("names:", " ".join(sorted(broker.__all__)))
    async with connect(os.environ["REDIS_URL"]) as client:
        assert isinstance(client, Broker)
        generation = await client.enqueue(body, idempotency_key="order-17")
        print("enqueued:", generation.status, json.dumps(generation.to_json(), separators=(',', ':')))
        again = await client.enqueue(body, idempotency_key="order-17")
        print("the same:", again.id == generation.id)
        cursor = None
        async for event in client.follow(generation.id):
            print("event:", event.name, event.cursor, event.terminal, event.data.decode())
            cursor = cursor or event.cursor
        async for event in client.follow(generation.id, after=cursor):
            print("resumed:", event.name, event.cursor)
            break
        print("get:", json.dumps((await client.get(generation.id)).to_json(), separators=(',', ':')))
        print("cancelled:", (await client.cancel(generation.id)).status)
        for what, work in (
            ("conflict", lambda: client.enqueue({**body, "n": 2}, idempotency_key="order-17")),
            ("malformed", lambda: anext(client.follow(generation.id, after="malformed"))),
            ("delete", lambda: client.delete(generation.id)),
            ("deleted", lambda: client.get(generation.id)),
            ("unknown", lambda: client.get("gen_nothing")),
            ("refused", lambda: client.enqueue({"model": "sim"})),
        ):
            try:
                print(what + ":", await work())
            except BrokerError as error:
                print(what + ":", type(error).__name__, error.code, error.param)

asyncio.run(main())
"""


async def record(stage: Stage, rec: Recorder) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, json.dumps(prompt("length=1")), cwd=ROOT,
        env=clean_environment(REDIS_URL=stage.redis.url), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE):
        out, _ = await process.communicate()
    assert process.returncode == 0
    rec.note("a program", (_line(line) for line in out.decode().splitlines()))


def _line(line: str) -> str:
    name, brace, rest = line.partition(" {")
    return f"{name}\n{laid_out(brace[1:] + rest)}" if brace else line


_BOUNDS = ("Ge", "Gt", "Le", "Lt", "MinLen", "MaxLen")


async def settings(stage: Stage, rec: Recorder) -> None:
    """Names, types, defaults and bounds of the settings and of an entry of TOKENCAST_UPSTREAMS."""
    del stage
    for kind in (Settings, ClientSettings):
        rec.note(kind.__name__, sorted(_settings(kind.model_fields, kind.model_config["env_prefix"])), exact=True)
    [upstream, *_] = Settings.model_fields["upstreams"].annotation.__args__
    rec.note("an entry of TOKENCAST_UPSTREAMS", _settings(upstream.model_fields, ""), exact=True)
    rec.note("may be in files", sorted(f"{name}_FILE" for name in SECRETS))


def _settings(fields: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, field in fields.items():
        variable = field.validation_alias or (f"{prefix}{name}".upper() if prefix else name)
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
        bounds = " ".join(repr(bound) for bound in field.metadata if type(bound).__name__ in _BOUNDS)
        default = "required" if field.is_required() else f"= {field.get_default(call_default_factory=True)!r}"
        kind = re.sub(r"Annotated\[(\w+), AfterValidator\(.*?>\)\]", r"\1", kind)
        kind = re.sub(r"^typing\.Optional\[(.*)\]$", r"\1 | None", kind)
        kind = re.sub(r"(\w+\.)+", "", kind)  # without the modules that define the types
        yield f"{variable}: {kind} {default} {bounds}".rstrip()

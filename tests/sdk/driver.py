"""Calls openai-python as its users do, for a test in another process: jobs on stdin, results on stdout, one JSON object
per line.

It runs on every release from 1.0 on, so it uses only the common interface, and reports the values that the SDK
returned.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from functools import cache
from typing import Any

import openai

LOCK = threading.Lock()


def send(job: int, **result: Any) -> None:
    with LOCK:
        sys.stdout.write(json.dumps({"job": job, **result}) + "\n")
        sys.stdout.flush()


def plain(model: Any) -> Any:
    """The received fields, without those that the SDK adds."""
    return model.model_dump(exclude_unset=True, warnings=False)


def describe(error: Exception) -> dict[str, Any]:
    response = getattr(error, "response", None)
    details: dict[str, Any] = {name: getattr(error, name, None) for name in ("code", "param", "type")}
    if openai.__version__ == "1.0.0" and response is not None:  # it looks for them one level too high
        details = {name: response.json()["error"][name] for name in details}
    return {
        "class": type(error).__name__,
        "api_error": isinstance(error, openai.APIError),
        "status": getattr(error, "status_code", None),
        "headers": dict(response.headers) if response is not None else {},
        "message": str(error),
        **details,
    }


@cache
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="key")


@cache
def async_client(base_url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base_url, api_key="key")


def run(job: int, base_url: str, call: str, **arguments: Any) -> None:
    api = client(base_url)
    completions = api.chat.completions
    if call == "create":
        send(job, completion=plain(completions.create(**arguments)))
    elif call == "stream":
        stream = completions.create(stream=True, **arguments)
        send(job, headers=dict(stream.response.headers))
        for chunk in stream:
            send(job, chunk=plain(chunk))
    elif call == "raw":
        response = completions.with_raw_response.create(**arguments)
        send(job, headers=dict(response.headers))
        if arguments.get("stream"):
            for chunk in response.parse():
                send(job, chunk=plain(chunk))
        else:
            send(job, completion=plain(response.parse()))
    elif call == "helper":
        with completions.stream(**arguments) as events:
            for event in events:
                if event.type == "chunk":
                    send(job, chunk=plain(event.chunk))
            send(job, completion=plain(events.get_final_completion()))
    elif call == "retrieve":
        send(job, completion=plain(completions.retrieve(**arguments)))
    elif call == "models":
        send(job, models=[plain(model) for model in api.models.list()])


async def run_async(job: int, base_url: str, call: str, **arguments: Any) -> None:
    api = async_client(base_url)
    completions = api.chat.completions
    if call == "create":
        send(job, completion=plain(await completions.create(**arguments)))
    elif call == "stream":
        stream = await completions.create(stream=True, **arguments)
        send(job, headers=dict(stream.response.headers))
        async for chunk in stream:
            send(job, chunk=plain(chunk))
    elif call == "raw":
        response = await completions.with_raw_response.create(**arguments)
        send(job, headers=dict(response.headers))
        if arguments.get("stream"):
            async for chunk in response.parse():
                send(job, chunk=plain(chunk))
        else:
            send(job, completion=plain(response.parse()))
    elif call == "helper":
        async with completions.stream(**arguments) as events:
            async for event in events:
                if event.type == "chunk":
                    send(job, chunk=plain(event.chunk))
            send(job, completion=plain(await events.get_final_completion()))
    elif call == "retrieve":
        send(job, completion=plain(await completions.retrieve(**arguments)))
    elif call == "models":
        send(job, models=[plain(model) async for model in api.models.list()])


def work(job: int, arguments: dict[str, Any], loop: asyncio.AbstractEventLoop | None) -> None:
    try:
        if loop is not None:
            asyncio.run_coroutine_threadsafe(run_async(job, **arguments), loop).result()
        else:
            run(job, **arguments)
    except Exception as error:
        send(job, error=describe(error))
    send(job, end=True)


def main() -> None:
    """Process jobs from stdin; with the argument `async`, use the asynchronous client."""
    loop = asyncio.new_event_loop() if sys.argv[1:] == ["async"] else None
    if loop is not None:
        threading.Thread(target=loop.run_forever, daemon=True).start()
    send(0, version=openai.__version__)
    for line in sys.stdin:
        arguments = json.loads(line)
        threading.Thread(target=work, args=(arguments.pop("job"), arguments, loop), daemon=True).start()
    os._exit(0)  # end running calls with the process, without output


if __name__ == "__main__":
    main()

"""Calls openai-python the way its users do, for a test in another process: a JSON object a line, jobs in, results out.

Runs on every release from 1.0 on, so it keeps to what all of them have, and says what it was given.
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


def say(job: int, **told: Any) -> None:
    with LOCK:
        sys.stdout.write(json.dumps({"job": job, **told}) + "\n")
        sys.stdout.flush()


def plain(model: Any) -> Any:
    """What was received, and nothing the SDK adds."""
    return model.model_dump(exclude_unset=True, warnings=False)


def told(error: Exception) -> dict[str, Any]:
    response = getattr(error, "response", None)
    details: dict[str, Any] = {name: getattr(error, name, None) for name in ("code", "param", "type")}
    if openai.__version__ == "1.0.0" and response is not None:  # which looks for them one level too high
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
        say(job, completion=plain(completions.create(**arguments)))
    elif call == "stream":
        stream = completions.create(stream=True, **arguments)
        say(job, headers=dict(stream.response.headers))
        for chunk in stream:
            say(job, chunk=plain(chunk))
    elif call == "raw":
        response = completions.with_raw_response.create(**arguments)
        say(job, headers=dict(response.headers))
        if arguments.get("stream"):
            for chunk in response.parse():
                say(job, chunk=plain(chunk))
        else:
            say(job, completion=plain(response.parse()))
    elif call == "helper":
        with completions.stream(**arguments) as events:
            for event in events:
                if event.type == "chunk":
                    say(job, chunk=plain(event.chunk))
            say(job, completion=plain(events.get_final_completion()))
    elif call == "retrieve":
        say(job, completion=plain(completions.retrieve(**arguments)))
    elif call == "models":
        say(job, models=[plain(model) for model in api.models.list()])


async def run_async(job: int, base_url: str, call: str, **arguments: Any) -> None:
    api = async_client(base_url)
    completions = api.chat.completions
    if call == "create":
        say(job, completion=plain(await completions.create(**arguments)))
    elif call == "stream":
        stream = await completions.create(stream=True, **arguments)
        say(job, headers=dict(stream.response.headers))
        async for chunk in stream:
            say(job, chunk=plain(chunk))
    elif call == "raw":
        response = await completions.with_raw_response.create(**arguments)
        say(job, headers=dict(response.headers))
        if arguments.get("stream"):
            async for chunk in response.parse():
                say(job, chunk=plain(chunk))
        else:
            say(job, completion=plain(response.parse()))
    elif call == "helper":
        async with completions.stream(**arguments) as events:
            async for event in events:
                if event.type == "chunk":
                    say(job, chunk=plain(event.chunk))
            say(job, completion=plain(await events.get_final_completion()))
    elif call == "retrieve":
        say(job, completion=plain(await completions.retrieve(**arguments)))
    elif call == "models":
        say(job, models=[plain(model) async for model in api.models.list()])


def work(job: int, arguments: dict[str, Any], loop: asyncio.AbstractEventLoop | None) -> None:
    try:
        if loop is not None:
            asyncio.run_coroutine_threadsafe(run_async(job, **arguments), loop).result()
        else:
            run(job, **arguments)
    except Exception as error:
        say(job, error=told(error))
    say(job, end=True)


def main() -> None:
    """`async` as the argument: with the asynchronous client."""
    loop = asyncio.new_event_loop() if sys.argv[1:] == ["async"] else None
    if loop is not None:
        threading.Thread(target=loop.run_forever, daemon=True).start()
    say(0, version=openai.__version__)
    for line in sys.stdin:
        arguments = json.loads(line)
        threading.Thread(target=work, args=(arguments.pop("job"), arguments, loop), daemon=True).start()
    os._exit(0)  # what is under way ends with us, without a word


if __name__ == "__main__":
    main()

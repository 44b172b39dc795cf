"""The chat dialect's part of `/openapi.json`."""

from __future__ import annotations

from api import openapi_examples as examples
from api.openapi_parts import (
    COMPLETION_REQUEST,
    CURSOR,
    ID,
    IDEMPOTENCY_KEY,
    OBJECT,
    OPTIONAL,
    OTHER_PARAMETERS,
    STRING,
    UPSTREAM_ERRORS,
    Json,
    answer,
    errors_with_key,
    json_of,
    operation,
    orelse_null,
    query,
    record,
    ref,
    stream_of,
    with_examples,
    with_token,
)

BARE = query("bare", {"enum": ["true", "false"]}, "Streams only: send `data:` lines only, without ids and heartbeats.")


def paths() -> Json:
    whole_or_stream = {**json_of("ChatCompletion"), **stream_of(examples.CHUNKS)}
    return {
        "/v1/chat/completions": {
            "post": operation(
                "createChatCompletion",
                "Create a chat completion, streamed or not, as OpenAI's API does",
                IDEMPOTENCY_KEY,
                BARE,
                body="ChatCompletionRequest",
                examples=examples.CHAT,
                _200=answer(
                    "The completion; with `stream`, its chunks and `[DONE]`.", whole_or_stream, "x-generation-id"
                ),
                **errors_with_key("400", "404", "410", *UPSTREAM_ERRORS),
            )
        },
        "/v1/chat/completions/{id}": {
            "get": with_token(
                operation(
                    "getChatCompletion",
                    "Get a stored completion, or stream it again",
                    query("stream", {"enum": ["true", "false"]}, "`true`: stream chunks until the completion ends."),
                    query("after", CURSOR, "Streams only: start after this cursor."),
                    query("starting_after", CURSOR, "The same, as OpenAI names it."),
                    query("include_usage", {"enum": ["true", "false"]}, "Streams only: send the usage chunk."),
                    BARE,
                    _200=answer("The completion so far; with `stream`, its chunks.", whole_or_stream),
                    **errors_with_key("400", "404", "410", *UPSTREAM_ERRORS),
                )
            )
        },
    }


_COMPLETIONS: Json = {
    "ChatCompletionRequest": record(
        {**COMPLETION_REQUEST, "stream": orelse_null({"type": "boolean"})},
        optional=(*OPTIONAL, "stream"),
        description=OTHER_PARAMETERS,
    ),
    "ChatCompletion": record(
        {
            "id": ID,
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": STRING,
            "choices": {"type": "array", "items": ref("Choice")},
            "usage": orelse_null(OBJECT),
        }
    ),
}
SCHEMAS: Json = with_examples(_COMPLETIONS, ChatCompletion=examples.CHAT_COMPLETION)

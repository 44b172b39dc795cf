"""The native dialect's part of `/openapi.json`."""

from __future__ import annotations

from api import openapi_examples as examples
from api.dialects.native.bulk import openapi as bulk
from api.dialects.native.bulk.openapi import FILTERS, OF_GROUP
from api.dialects.native.multiplex import MAX_GENERATIONS
from api.dialects.native.paced import FASTEST, SLOWEST
from api.dialects.native.routes import DEFAULT_EVENTS, EVENTS_LIMIT
from api.openapi_parts import (
    COMPLETION_REQUEST,
    CURSOR,
    ID,
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    OF_TENANT,
    OPTIONAL,
    OTHER_PARAMETERS,
    Json,
    answer,
    errors_with_key,
    json_of,
    operation,
    orelse_null,
    query,
    record,
    schemas_of,
    stream_of,
    whole,
    with_examples,
    with_token,
)
from broker import records
from broker.auth.stream_tokens import LONGEST
from broker.broker import DEFAULT_LIMIT, LIST_LIMIT
from broker.events import STATUSES

PAGE = (
    "A page of generations. It can hold fewer than `limit`, or none, while `has_more` is true: continue with the last "
    "id of the page, or repeat the request if it is empty."
)
LINKS: Json = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("getGeneration", "followGeneration", "cancelGeneration", "createToken", "getChatCompletion")
}


def paths() -> Json:
    return {**_generations(), **bulk.paths(), **_generation(), **_deliveries(), **_events(), **_several()}


def _generations() -> Json:
    one = json_of("Generation")
    new = json_of("Generation", examples.ACCEPTED)
    accepted = answer("The accepted generation.", new, "Location", "x-generation-id")
    return {
        "/v1/generations": {
            "post": operation(
                "createGeneration",
                "Enqueue a generation",
                IDEMPOTENCY_KEY,
                body="GenerationRequest",
                examples=examples.COMPLETION,
                _200=answer(
                    "The generation that an earlier request with this Idempotency-Key created.",
                    one,
                    "Location",
                    "idempotent-replayed",
                ),
                _202={**accepted, "links": LINKS},
                **errors_with_key("400", "404", "413", "422", "429"),
            ),
            "get": operation(
                "listGenerations",
                "List the caller's generations, newest first, without texts",
                query(
                    "status",
                    {"type": "array", "items": {"enum": list(STATUSES)}},
                    "Only generations with one of these statuses; repeated, or separated by commas.",
                ),
                *FILTERS,
                OF_TENANT,
                query("limit", whole(1, LIST_LIMIT, DEFAULT_LIMIT), "Page size."),
                query("after", {"anyOf": [ID, {"const": ""}]}, "The last id of the previous page."),
                _200=answer(PAGE, json_of("GenerationList")),
                **errors_with_key("400", "404", "429"),
            ),
        },
    }


def _generation() -> Json:
    one = json_of("Generation")
    return {
        "/v1/generations/{id}": {
            "get": with_token(
                operation(
                    "getGeneration",
                    "Get a generation, with its text so far",
                    query("include", {"enum": ["request"]}, "Include the request body; not allowed with a token."),
                    _200=answer("The generation.", one),
                    **errors_with_key("400", "404", "410", "429"),
                )
            ),
            "delete": operation(
                "deleteGeneration",
                "Delete a generation; a running one is cancelled first, and its followers are told",
                _204=answer("The generation was deleted."),
                **errors_with_key("404", "410"),
            ),
        },
        "/v1/generations/{id}/cancel": {
            "post": operation(
                "cancelGeneration",
                "Cancel a generation at once; one that has ended does not change",
                _200=answer("The generation after the cancellation.", json_of("Generation", examples.CANCELLED)),
                **errors_with_key("404", "410", "429"),
            )
        },
        "/v1/generations/{id}/token": {
            "post": operation(
                "createToken",
                "Create a token that reads this generation only, for EventSource",
                body="TokenRequest",
                optional_body=True,
                examples=examples.TOKEN_REQUEST,
                _200=answer("The token, and the URL of the event stream with it.", json_of("Token")),
                **errors_with_key("400", "404", "410", "413"),
            )
        },
    }


def _deliveries() -> Json:
    attempts = json_of("DeliveryList")
    return {
        "/v1/generations/{id}/deliveries": {
            "get": operation(
                "listDeliveries",
                "List the attempts to deliver a generation's webhook",
                _200=answer("The newest attempts, oldest first.", attempts),
                **errors_with_key("404", "410"),
            )
        },
        "/v1/generations/{id}/deliveries/{n}/redeliver": {
            "post": operation(
                "redeliver",
                "Deliver a generation's webhook again, at once; failures are repeated for a day",
                {"name": "n", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}},
                _202=answer("The attempts so far; the next one is due.", attempts),
                **errors_with_key("404", "410"),
            )
        },
    }


def _events() -> Json:
    after = {"anyOf": [CURSOR, {"const": "latest"}]}
    speed = {"type": "number", "minimum": SLOWEST, "maximum": FASTEST}
    return {
        "/v1/generations/{id}/events": {
            "get": with_token(
                operation(
                    "followGeneration",
                    "Follow a generation: its events from the log, then live",
                    query("after", after, "Start after this cursor; default: the first event. `latest`: streams only."),
                    query("limit", whole(1, EVENTS_LIMIT, DEFAULT_EVENTS), "Page size."),
                    query("speed", speed, "Replay with the recorded timing, sped up by this factor."),
                    *LAST_EVENT_ID,
                    _200=answer(
                        "Server-sent events, or a page of them with `Accept: application/json`. A gateway that is full "
                        "or stopping sends `retry:` and ends the stream: reconnect.",
                        {**stream_of(examples.EVENTS), **json_of("EventPage")},
                    ),
                    _204=answer("The generation has ended, and there are no events after the cursor."),
                    **errors_with_key("400", "404", "410", "429"),
                )
            )
        }
    }


def _several() -> Json:
    start = {"type": "string", "pattern": f"{ID['pattern'].rstrip('$')}(@({CURSOR['pattern'].strip('^$')}|latest))?$"}
    starts = {"type": "array", "items": start, "minItems": 1, "maxItems": MAX_GENERATIONS}
    return {
        "/v1/events": {
            "get": with_token(
                operation(
                    "followSeveral",
                    "Follow several generations in one stream; each event names its generation and cursor",
                    {**query("generation", starts, "An id, or `id@cursor` to start after that."), "required": True},
                    *LAST_EVENT_ID,
                    _200=answer("Server-sent events, until all generations have ended.", stream_of(examples.SEVERAL)),
                    _204=answer("All generations have ended, and there are no events after the cursors."),
                    **errors_with_key("400", "404", "410"),
                )
            )
        },
        "/v1/activity": {
            "get": operation(
                "watchActivity",
                "Follow the status changes of all the caller's generations, without texts",
                query("after", {"anyOf": [whole(0, 10**16 - 1, 0), {"const": "latest"}]}, "Start after this id."),
                OF_GROUP,
                OF_TENANT,
                *LAST_EVENT_ID,
                _200=answer(
                    "Server-sent events with generation summaries. The stream does not end.",
                    stream_of(examples.ACTIVITY),
                ),
                **errors_with_key("400"),
            )
        },
    }


SCHEMAS: Json = {
    "GenerationRequest": record(COMPLETION_REQUEST, optional=OPTIONAL, description=OTHER_PARAMETERS),
    "TokenRequest": record(
        {"ttl_seconds": orelse_null({"type": "number", "minimum": 1, "maximum": LONGEST})}, optional=("ttl_seconds",)
    ),
    **with_examples(
        schemas_of(records.Generation, records.GenerationList, records.EventPage, records.Token, records.DeliveryList),
        Generation=examples.GENERATION,
        GenerationSummary=examples.SUMMARY,
        GenerationList=examples.GENERATION_LIST,
        EventPage=examples.EVENT_PAGE,
        Token=examples.TOKEN,
        DeliveryList=examples.DELIVERIES,
    ),
    **bulk.SCHEMAS,
}

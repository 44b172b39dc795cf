"""The part of `/openapi.json` about filters, batches, retries and groups."""

from __future__ import annotations

from api import openapi_examples as examples
from api.dialects.native.bulk.matching import CancelRequest, DeleteRequest, RetryRequest
from api.openapi_parts import (
    IDEMPOTENCY_KEY,
    OF_ONE_TENANT,
    STRING,
    Json,
    answer,
    errors_with_key,
    json_of,
    operation,
    query,
    record,
    schemas_of,
    with_examples,
)
from broker import records
from broker.bulk.conditions import MAX_SEARCH
from broker.bulk.operations import BATCH_LIMIT
from broker.request.options import MAX_GROUP

MOMENT: Json = {"type": "string", "examples": ["1763790000", "2026-01-31T12:00:00Z"]}
GROUP: Json = {"type": "string", "minLength": 1, "maxLength": MAX_GROUP}
OF_GROUP = query("group", {"anyOf": [GROUP, {"const": ""}]}, "Only generations of this group.")
NO_METADATA: Json = {}
FILTERS = (
    query("model", STRING, "Only generations of this model."),
    query("code", STRING, "Only generations that failed with this error code."),
    OF_GROUP,
    query("upstream", STRING, "Only generations that this upstream has, or had last."),
    query(
        "search",
        {"type": "string", "maxLength": MAX_SEARCH},
        "Only generations with all of these words in their id, model, group, upstream, error code, metadata or the "
        "first line of the prompt.",
    ),
    {
        **query(
            "metadata",
            {"type": "object", "additionalProperties": STRING},
            "`metadata[key]=value`: only generations with this pair.",
        ),
        "example": NO_METADATA,  # a viewer would send one that it has made up
        "style": "deepObject",
        "explode": True,
    },
    query("since", MOMENT, "Only generations created at this time or later: unix seconds, or ISO 8601."),
    query("created_after", MOMENT, "The same as `since`."),
    query("until", MOMENT, "Only generations created before this time."),
    query("created_before", MOMENT, "The same as `until`."),
)


def paths() -> Json:
    return {**_bulk(), **_groups()}


def _bulk() -> Json:
    batch = operation(
        "createBatch",
        "Enqueue up to 1,000 generations; an invalid one does not affect the others",
        IDEMPOTENCY_KEY,
        body="BatchRequest",
        examples=examples.ITEMS,
        _200=answer("For each item, in order, its generation or an error.", json_of("GenerationBatch")),
        **errors_with_key("400", "413"),
    )
    batch["requestBody"]["content"]["application/x-ndjson"] = {
        "schema": {"type": "string", "description": "One request body per line."},
        "examples": examples.LINES,
    }
    return {"/v1/generations/batch": {"post": batch}, **_matching(), **_retry()}


def _matching() -> Json:
    return {
        "/v1/generations/retry": {
            "post": operation(
                "retryGenerations",
                "Retry the generations that match, or only find them",
                IDEMPOTENCY_KEY,
                body="RetryRequest",
                optional_body=True,
                examples=examples.RETRY,
                _200=answer("The matches, and what became of them.", json_of("RetryResult")),
                **errors_with_key("400", "413", "429"),
            )
        },
        "/v1/generations/cancel": {
            "post": operation(
                "cancelGenerations",
                "Cancel the generations that match; with `dry_run` only find them",
                body="CancelRequest",
                optional_body=True,
                examples=examples.CANCEL,
                _200=answer("The matches, and what became of them.", json_of("CancelResult")),
                **errors_with_key("400", "413", "429"),
            )
        },
        "/v1/generations/delete": {
            "post": operation(
                "deleteGenerations",
                "Delete the generations that match; with `dry_run` only find them",
                body="DeleteRequest",
                examples=examples.DELETE,
                _200=answer("The matches, and what became of them.", json_of("DeleteResult")),
                **errors_with_key("400", "413", "429"),
            )
        },
    }


def _retry() -> Json:
    one = json_of("Generation", examples.RETRIED)
    return {
        "/v1/generations/{id}/retry": {
            "post": operation(
                "retryGeneration",
                "Create a new generation with the request of one that has ended",
                IDEMPOTENCY_KEY,
                _200=answer("The generation that an earlier request with this key created.", one, "Location"),
                _202=answer("The new generation.", one, "Location", "x-generation-id"),
                **errors_with_key("400", "404", "409", "410", "413", "422", "429"),
            )
        },
    }


def _groups() -> Json:
    name = {"name": "name", "in": "path", "required": True, "schema": GROUP, "description": "Percent-encoded."}
    group, errors = json_of("Group"), errors_with_key("400", "404")
    return {
        "/v1/groups/{name}": {
            "parameters": [name],
            "get": operation(
                "getGroup",
                "Count the generations of a group",
                OF_ONE_TENANT,
                _200=answer("The group.", group),
                **errors,
            ),
        },
        "/v1/groups/{name}/cancel": {
            "parameters": [name],
            "post": operation(
                "cancelGroup",
                "Cancel all waiting and running generations of a group",
                OF_ONE_TENANT,
                _200=answer("The group after the cancellation.", group),
                **errors,
            ),
        },
    }


SCHEMAS: Json = {
    "BatchRequest": record(
        {
            "generations": {
                "type": "array",
                "minItems": 1,
                "maxItems": BATCH_LIMIT,
                "items": {"description": "A `GenerationRequest`. An invalid one gets an error in its place."},
            }
        }
    ),
    **with_examples(
        schemas_of(
            *(records.GenerationBatch, records.RetryResult, records.CancelResult, records.DeleteResult),
            *(records.ItemError, records.Group, RetryRequest, CancelRequest, DeleteRequest),
        ),
        GenerationBatch=examples.BATCH,
        RetryResult=examples.RETRY_RESULT,
        CancelResult=examples.CANCEL_RESULT,
        DeleteResult=examples.DELETE_RESULT,
        Group=examples.GROUP,
    ),
}

"""The operations of a gateway, without I/O: for each, the request and the function that reads its response.

Both clients send these, so that each route is described once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from tokencast_client.errors import InvalidRequest
from tokencast_client.records import (
    Delivery,
    Generation,
    Group,
    Items,
    Json,
    Queue,
    QueueLevel,
    RetryResult,
    Token,
    Upstream,
    build,
    data_of,
    to_generation,
    to_items,
    to_object,
)

T = TypeVar("T")
Params = tuple[tuple[str, str], ...]
Words = str | Sequence[str]
Time = float | str | datetime
"""Unix seconds, ISO 8601, or a datetime, which is local time without a time zone."""
PAGE = 100
"""Generations, the maximum that a gateway lists at once."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """A request, and how to read its response."""

    method: str
    path: str
    parse: Callable[[Any], T]
    params: Params = ()
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    repeatable: bool = True
    """Whether repeating it has no further effect."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. `last_id` is the `after` of the next one; None on the last page."""

    data: list[Generation]
    last_id: str | None


def request(
    method: str,
    path: str,
    body: object = None,
    *,
    params: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Operation[Any]:
    """Return the operation of any route; its result is the JSON of the response, None for an empty one."""
    return Operation(
        method,
        path,
        lambda answer: answer,
        tuple(_params(params or {})),
        None if body is None else encode(body),
        _json_headers(headers or {}) if body is not None else headers or {},
        repeatable=method in ("GET", "HEAD", "PUT", "DELETE") or "idempotency-key" in map(str.lower, headers or {}),
    )


def enqueue(body: Mapping[str, Any], idempotency_key: str | None) -> Operation[Generation]:
    """Without a key the client chooses one, so that a repetition after a lost connection enqueues nothing twice."""
    return _post("/v1/generations", to_generation, body, idempotency_key or new_key())


def enqueue_batch(bodies: Iterable[Mapping[str, Any]], idempotency_key: str | None) -> Operation[Items]:
    batch = {"generations": list(bodies)}
    return _post("/v1/generations/batch", to_items, batch, idempotency_key or new_key())


def generation_request(
    body: Mapping[str, Any] | None = None,
    /,
    *,
    model: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    priority: int | None = None,
    delay_seconds: float | None = None,
    run_at: float | None = None,
    queue_timeout: float | None = None,
    group: str | None = None,
    webhook: str | Mapping[str, Any] | None = None,
    on_upstream_error: str | None = None,
    ttl_seconds: float | None = None,
    metadata: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Json:
    """Return the body of a request, for `enqueue_batch`: `body`, with the arguments in place of its fields."""
    ours = {
        "priority": priority,
        "delay_seconds": delay_seconds,
        "run_at": run_at,
        "queue_timeout": queue_timeout,
        "group": group,
        "webhook": {"url": webhook} if isinstance(webhook, str) else webhook,
        "on_upstream_error": on_upstream_error,
        "ttl_seconds": ttl_seconds,
        "metadata": metadata,
    }
    named = {name: value for name, value in (("model", model), ("messages", messages)) if value is not None}
    made: Json = {**(body or {}), **named, **parameters}
    given = {name: value for name, value in ours.items() if value is not None}
    if not given:
        return made
    before = made.get("tokencast")
    if before is not None and not isinstance(before, Mapping):
        raise InvalidRequest("`tokencast` must be an object.")
    for name in given.keys() & {"metadata", "ttl_seconds", "on_upstream_error"}:
        made.pop(name, None)  # accepted at the top of a body too, but not in both places
    return {**made, "tokencast": {**(before or {}), **given}}


def get(gid: str, *, include_request: bool = False) -> Operation[Generation]:
    return _get(_one(gid), to_generation, {"include": "request" if include_request else None})


def list_page(
    filters: Mapping[str, object], metadata: Mapping[str, str] | None, limit: int, after: str | None
) -> Operation[Page]:
    pairs = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    return _get("/v1/generations", _to_page, {**filters, **pairs, "limit": limit, "after": after})


def cancel(gid: str) -> Operation[Generation]:
    return _post(f"{_one(gid)}/cancel", to_generation)


def delete(gid: str) -> Operation[None]:
    return Operation("DELETE", _one(gid), lambda _: None)


def retry(gid: str, idempotency_key: str | None) -> Operation[Generation]:
    return _post(f"{_one(gid)}/retry", to_generation, None, idempotency_key or new_key())


def retry_all(conditions: Mapping[str, object], idempotency_key: str | None) -> Operation[RetryResult]:
    given = ((name, value) for name, value in conditions.items() if value is not None)
    body = {name: value.timestamp() if isinstance(value, datetime) else value for name, value in given}
    return _post("/v1/generations/retry", _to_retry_result, body, idempotency_key or new_key())


def token(gid: str, ttl_seconds: int | None, url: str) -> Operation[Token]:
    def parse(answer: Any) -> Token:
        return build(Token, answer, url=url + str(to_object(answer)["events_url"]))

    return _post(f"{_one(gid)}/token", parse, {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds})


def group(name: str) -> Operation[Group]:
    return _get(f"/v1/groups/{quote(name, safe='')}", _to_group)


def cancel_group(name: str) -> Operation[Group]:
    return _post(f"/v1/groups/{quote(name, safe='')}/cancel", _to_group)


def deliveries(gid: str) -> Operation[list[Delivery]]:
    return _get(f"{_one(gid)}/deliveries", lambda answer: [build(Delivery, one) for one in data_of(answer)])


def redeliver(gid: str, n: int) -> Operation[Any]:
    return Operation("POST", f"{_one(gid)}/deliveries/{n}/redeliver", lambda answer: answer, repeatable=False)


def queue() -> Operation[Queue]:
    return _get("/v1/queue", _to_queue)


def pause(*, paused: bool, upstream: str | None, tenant: str | None) -> Operation[Queue]:
    given = {name: value for name, value in (("upstream", upstream), ("tenant", tenant)) if value is not None}
    return _post(f"/v1/queue/{'pause' if paused else 'resume'}", _to_queue, given)


def upstreams() -> Operation[list[Upstream]]:
    return _get("/v1/upstreams", lambda answer: [build(Upstream, one) for one in data_of(answer)])


def update_upstream(name: str, changes: Mapping[str, int | bool | None]) -> Operation[Upstream]:
    content, path = encode(dict(changes)), f"/v1/upstreams/{quote(name, safe='')}"
    return Operation("PATCH", path, lambda one: build(Upstream, one), content=content, headers=_json_headers({}))


def models() -> Operation[list[str]]:
    return _get("/v1/models", lambda answer: [str(to_object(model)["id"]) for model in data_of(answer)])


def encode(body: object) -> bytes:
    """Encode a body. Raises InvalidRequest for what JSON cannot express."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeError:
        raise InvalidRequest("The request contains characters that cannot be sent.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"The request cannot be sent as JSON: {error}.") from None


def new_key() -> str:
    """Return an idempotency key that nobody else has."""
    return f"tokencast-client-{secrets.token_hex(16)}"


def _one(gid: str) -> str:
    return f"/v1/generations/{quote(gid, safe='')}"


def _get(path: str, parse: Callable[[Any], T], params: Mapping[str, object] | None = None) -> Operation[T]:
    return Operation("GET", path, parse, tuple(_params(params or {})))


def _post(path: str, parse: Callable[[Any], T], body: object = None, key: str | None = None) -> Operation[T]:
    headers = {"idempotency-key": key} if key else {}
    if body is None:
        return Operation("POST", path, parse, headers=headers)
    return Operation("POST", path, parse, content=encode(body), headers=_json_headers(headers))


def _json_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {"content-type": "application/json", **headers}


def _params(params: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    """Yield query parameters. None is absent, and a list of words is joined by commas."""
    for name, value in params.items():
        if value is None:
            continue
        if isinstance(value, str):
            text = value
        elif isinstance(value, datetime):
            text = str(value.timestamp())
        elif isinstance(value, Iterable):
            text = ",".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        else:
            text = str(value)
        if text:
            yield name, text


def _to_page(answer: Any) -> Page:
    page = to_object(answer)
    data = [to_generation(one) for one in data_of(page)]
    if not page["has_more"]:
        return Page(data, None)
    # With filters it can be an id that is not on the page. An empty page skipped expired generations.
    return Page(data, page.get("last_id") or (data[-1].id if data else None))


def _to_group(answer: Any) -> Group:
    return build(Group, answer)


def _to_queue(answer: Any) -> Queue:
    return build(Queue, answer, levels=[build(QueueLevel, one) for one in to_object(answer)["levels"]])


def _to_retry_result(answer: Any) -> RetryResult:
    return build(RetryResult, answer, data=to_items(answer))

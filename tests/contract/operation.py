"""Areas: the routes that describe the gateway, and metrics."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.contract.layout import laid_out
from tests.contract.recorder import Exchange, Recorder
from tests.contract.stage import Stage
from tests.support import wait_until

_HUMAN_READABLE = ("description", "summary")
_EXAMPLES = ("example", "examples")  # tests/acceptance/ops/test_openapi.py sends them


async def record(stage: Stage, rec: Recorder) -> None:
    api = stage.of("other")
    for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/sim", "/v1/models/of/many/parts", "/favicon.ico"):
        await rec.ask("get", api, "GET", path)
        await rec.ask("HEAD", api, "HEAD", path)
    for path in ("/v1/models/", "/v1/models/x/", "/static/nothing.js", "/docs/", "/v1/overview/"):
        await rec.ask("none", api, "GET", path)
    for path in (
        "/healthz",
        "/readyz",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/v1/overview",
        "/v1/history",
        "/",
    ):
        await rec.ask("another method", api, "POST", path)
    for path in ("/", "/docs", "/openapi.json", "/static/css/docs.css"):
        await rec.ask("a page", api, "GET", path, show_body=False)
    await _overview(stage, rec)
    document = (await api.http.get("/openapi.json")).json()
    rec.note("openapi.json, without texts for people", _openapi(document))


async def _overview(stage: Stage, rec: Recorder) -> None:
    overview = await rec.ask("overview", stage.of("other"), "GET", "/v1/overview")
    overview.body[:] = re.sub(rb'("(?:running|depth)":)\d+', rb"\1<n>", overview.body)
    overview.body[:] = re.sub(rb'("oldest_seconds":)[\d.e-]+', rb"\1<seconds>", overview.body)


def _openapi(document: dict[str, Any]) -> str:
    document["info"]["version"] = "<version>"
    return laid_out(json.dumps(_without_texts(document), ensure_ascii=False, separators=(",", ":")))


def _without_texts(value: Any, *, names: bool = False) -> Any:
    """`names`: the value's keys are names of fields or schemas, not keywords."""
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_texts(item, names=key in ("properties", "schemas") and not names)
        for key, item in value.items()
        if names or not (key in _EXAMPLES or (key in _HUMAN_READABLE and isinstance(item, str)))
    }


async def metrics(stage: Stage, rec: Recorder) -> None:
    """A separate area, recorded after the others, so that every family has samples."""
    for name, api in (("gateway", stage.keyed), ("worker", stage.worker)):
        answer = await rec.ask(f"metrics of the {name}", api, "GET", "/metrics", show_body=False)
        rec.note(f"families of the {name}", _families(answer))
        openmetrics = {"accept": "application/openmetrics-text;version=1.0.0"}
        await rec.ask(
            f"metrics of the {name}, as OpenMetrics", api, "GET", "/metrics", headers=openmetrics, show_body=False
        )

    async def ready() -> bool:
        return (await stage.worker.http.get("/readyz")).status_code == 200

    await wait_until(ready)
    for path in ("/healthz", "/readyz", "/nothing"):
        await rec.ask("worker", stage.worker, "GET", path)


def _families(answer: Exchange) -> list[str]:
    """TYPE lines, and the names of samples with the names of their labels; for buckets also their bounds."""
    lines: dict[str, None] = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            lines[re.sub(r'(?!\ble=)\b(\w+)="(?:[^"\\]|\\.)*"', r"\1", line.rpartition(" ")[0])] = None
        elif line.startswith("# TYPE"):
            lines[line] = None
    return list(lines)


async def wording(stage: Stage, rec: Recorder) -> None:
    """A separate area: the help texts of the metrics."""
    for name, api in (("gateway", stage.keyed), ("worker", stage.worker)):
        lines = (await api.http.get("/metrics")).text.splitlines()
        rec.note(f"help of the {name}'s metrics", [line for line in lines if line.startswith("# HELP")])

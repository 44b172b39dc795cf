"""The table of merge cases, `cases.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

CASES: dict[str, Json] = json.loads(Path(__file__).with_name("cases.json").read_text("utf-8"))["cases"]


def chunks_of(case: Json) -> list[Json]:
    if "chunks" in case:
        return case["chunks"]
    return [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in case["deltas"]]


def choices_of(case: Json) -> list[Json]:
    """All merged choices."""
    if "choices" in case:
        return case["choices"]
    message = {"role": "assistant", "content": None, **case["message"]}
    return [{"index": 0, "message": message, "finish_reason": case.get("finish_reason")}]


def text_of_case(case: Json) -> str:
    content = next((choice["message"]["content"] for choice in choices_of(case)), None)
    return case.get("text", content if isinstance(content, str) else "")


def calls_of(case: Json) -> list[list[str]]:
    """Name and arguments of each tool call of choice 0."""
    if "calls" in case:
        return case["calls"]
    calls = [call for choice in choices_of(case)[:1] for call in choice["message"].get("tool_calls", ())]
    return [[call["function"]["name"], call["function"]["arguments"]] for call in calls]

"""Logging configuration, set up once per process: text, or one JSON object per line.

Both forms have the same details: as `name=value` after the message, and as members of the object. No log line contains
a prompt, an output or a key; requests are logged by their ids.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal

from broker.runtime.tracing import trace_id

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the current request; empty outside of a request."""

Style = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]
Detail = str | int | float | None

_GENERATION = re.compile(r"gen_[0-9a-z]{34}")
_PLAIN = re.compile(r"[\w./:@+,-]+", re.ASCII)
_LONGEST = 100  # characters of a detail that a caller or an upstream has chosen


def details(**named: Detail) -> dict[str, object]:
    """Return the `extra` of a log call: details that follow its message, without those that are None or empty. A line
    of a traced request or generation has its `trace_id` too."""
    return {"details": {name: value for name, value in named.items() if value not in (None, "")}}


def _all_details(record: logging.LogRecord) -> Mapping[str, object]:
    given: dict[str, object] = getattr(record, "details", {})
    trace = trace_id()
    return {**given, "trace_id": trace} if trace and "trace_id" not in given else given


def _shown(value: object) -> str:
    """Return a detail as one word, or in quotes: model names are the callers', and may contain anything."""
    text = str(value)[:_LONGEST]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class TextFormatter(logging.Formatter):
    """Formats records as lines of text: time, level, logger, message, and the details as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides
        """Return the line without a traceback."""
        words = "".join(f" {name}={_shown(value)}" for name, value in _all_details(record).items())
        return super().formatMessage(record) + words


class JsonFormatter(logging.Formatter):
    """Formats records as `{"time", "level", "logger", "message", …}`: with `request_id` during a request,
    `generation_id` if the message contains one, the details of the record, and what its message says, passed as
    `extra={"fields": {…}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if generation := _GENERATION.search(record.getMessage()):
            line["generation_id"] = generation[0]
        line.update(getattr(record, "fields", {}))
        line.update(_all_details(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(style: Style, level: Level = "info") -> None:
    """Log to stderr, from `level` up. arq logs job arguments, the SDK and aiohttp whole requests, and uvicorn full URLs
    at lower levels, none of which must be in a log: `debug` applies to our own loggers only."""
    least = logging.getLevelNamesMapping()[level.upper()]

    def at_least(other: int) -> dict[str, object]:
        return {"level": max(least, other)}

    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"text": {"()": TextFormatter}, "json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": style}},
            "root": {**at_least(logging.INFO), "handlers": ["stderr"]},
            "loggers": {
                "tokencast": {"level": least},
                "arq": at_least(logging.ERROR),
                "httpx2": at_least(logging.WARNING),
                "openai": at_least(logging.WARNING),
                "uvicorn": at_least(logging.WARNING),
                "uvicorn.access": {"level": "CRITICAL", "propagate": False},
            },
        }
    )

"""Logging configuration, set up once per process: text, or one JSON object per line.

No log line contains a prompt, an output or a key; requests are logged by their ids.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
from contextvars import ContextVar
from typing import Literal

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the current request; empty outside of a request."""

_GENERATION = re.compile(r"gen_[0-9a-z]{34}")


class JsonFormatter(logging.Formatter):
    """Formats records as `{"time", "level", "logger", "message", …}`: with `request_id` during a request,
    `generation_id` if the message contains one, and the fields passed as `extra={"fields": {…}}`."""

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
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(style: Literal["text", "json"]) -> None:
    """Log to stderr. arq logs job arguments and uvicorn logs full URLs at INFO, which must not be in a log."""
    text = {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"text": text, "json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": style}},
            "root": {"level": "INFO", "handlers": ["stderr"]},
            "loggers": {
                "arq": {"level": "ERROR"},
                "httpx2": {"level": "WARNING"},
                "openai": {"level": "WARNING"},
                "uvicorn": {"level": "WARNING"},
                "uvicorn.access": {"level": "CRITICAL", "propagate": False},
            },
        }
    )

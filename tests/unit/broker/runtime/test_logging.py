"""Both formats of log lines have the same details, and no detail can forge a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from broker.runtime.logging import JsonFormatter, TextFormatter, configure_logging, details

GID = "gen_" + "0" * 34


def record(**named: str | float | None) -> logging.LogRecord:
    made = logging.LogRecord("tokencast.worker", logging.INFO, __file__, 1, "%s: completed", (GID,), None)
    made.__dict__.update(details(**named))
    return made


def test_text_and_json_have_the_same_details() -> None:
    made = record(model="gpt-4o", seconds=1.25, code=None)
    assert (
        TextFormatter().format(made).endswith(f"INFO    tokencast.worker: {GID}: completed model=gpt-4o seconds=1.25")
    )
    line = json.loads(JsonFormatter().format(made))
    assert (line["generation_id"], line["model"], line["seconds"]) == (GID, "gpt-4o", 1.25)
    assert "code" not in line


def test_a_model_name_cannot_forge_a_line() -> None:
    made = record(model='x"\n2026-01-01 INFO forged ' + "x" * 500)
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(made)
        assert "\n" not in line
        assert len(line) < 1000
    assert r'model="x\"\n2026' in TextFormatter().format(made)


def test_a_line_of_a_traced_request_has_the_trace_id() -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        expected = f"{span.get_span_context().trace_id:032x}"
        assert TextFormatter().format(record()).endswith(f" trace_id={expected}")
        assert json.loads(JsonFormatter().format(record()))["trace_id"] == expected


@pytest.fixture
def _configured_logging() -> Iterator[None]:
    """Restore the loggers that `configure_logging` changes."""
    names = ["", "tokencast", "arq", "httpx2", "openai", "uvicorn", "uvicorn.access"]
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    access = logging.getLogger("uvicorn.access").propagate
    yield
    for name, (level, handlers) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers[:] = handlers
    logging.getLogger("uvicorn.access").propagate = access


@pytest.mark.usefixtures("_configured_logging")
def test_debug_applies_to_our_loggers_only() -> None:
    """The SDK's debug lines contain whole requests."""
    configure_logging("text", "debug")
    assert logging.getLogger("tokencast.worker").isEnabledFor(logging.DEBUG)
    for name in ("openai", "httpx2", "arq", "asyncio"):
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG), name
    configure_logging("text", "error")
    for name in ("tokencast.worker", "openai", "uvicorn", "other"):
        assert not logging.getLogger(name).isEnabledFor(logging.WARNING), name

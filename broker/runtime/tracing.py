"""Traces, where OpenTelemetry is installed (the extra `otel`) and told where to send them: by
OTEL_EXPORTER_OTLP_ENDPOINT, and whatever else its SDK reads. The only file that knows it; without it nothing here does
anything.

A generation's trace begins with the request that created it and stays with it, as `traceparent` in its meta: the wait
in the queue, each attempt, and each response that follows it are its children, whichever process they are in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from broker.runtime.environment import read_variable
from broker.runtime.process import install_command
from broker.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SEND_WITHIN = 3.0
"""Seconds at a process's end for the spans that are left. The exporter by itself waits ten for a collector that takes
connections and does not answer, and the SDK thirty."""
log = logging.getLogger("tokencast.trace")
Value = str | int | float


class _Process:
    tracer: Tracer | None = None


def configure_tracing(service: str) -> Callable[[], None]:
    """Once per process. What it returns sends what is left, within SEND_WITHIN, and is called at the process's end."""
    if not (read_variable("OTEL_EXPORTER_OTLP_ENDPOINT") or read_variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return _nothing
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(
            "tracing is off: an OTLP endpoint is set, but OpenTelemetry is not installed: %s", install_command("otel")
        )
        return _nothing
    named = Resource.create({"service.name": service, "service.version": __version__})
    provider = TracerProvider(resource=named, shutdown_on_exit=False)  # that would wait without a bound, once more
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _Process.tracer = provider.get_tracer("tokencast", __version__)
    return partial(_shut_down, provider)


def _shut_down(provider: TracerProvider) -> None:
    sending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
    sending.start()
    sending.join(SEND_WITHIN)
    if sending.is_alive():
        log.warning("the last spans were lost: no response from the OTLP collector within %g s", SEND_WITHIN)


def _nothing() -> None:
    pass


def tracing() -> bool:
    return _Process.tracer is not None


class Spanned:
    """A span that may be none."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def note(self, **attributes: Value | None) -> None:
        """Names have `__` where a dot stands."""
        if self._span is not None:
            for name, value in attributes.items():
                if value is not None:
                    self._span.set_attribute(name.replace("__", "."), value)

    def failed(self, why: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, why)

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)


@contextmanager
def span(name: str, parent: str = "", *, server: bool = False, **attributes: Value) -> Generator[Spanned]:
    """A span while the block runs, the child of a `traceparent`, or of the span around it if there is none."""
    tracer = _Process.tracer
    if tracer is None:
        yield Spanned(None)
        return
    from opentelemetry.trace import SpanKind

    kind = SpanKind.SERVER if server else SpanKind.INTERNAL
    with tracer.start_as_current_span(
        name, _context(parent), kind=kind, record_exception=False, set_status_on_exception=False
    ) as started:
        spanned = Spanned(started)
        spanned.note(**attributes)
        yield spanned


def past_span(name: str, parent: str, began: float, ended: float, **attributes: Value) -> None:
    """One that is over: from and to in unix seconds."""
    if _Process.tracer is not None:
        found = _Process.tracer.start_span(name, _context(parent), start_time=int(began * 1e9))
        Spanned(found).note(**attributes)
        found.end(int(max(began, ended) * 1e9))


def mark(event: str) -> None:
    """Notes a moment in the span that is around."""
    if _Process.tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().add_event(event)


def _context(parent: str) -> Context | None:
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def traceparent() -> str:
    """Of the span that is around; "" if none is, or nobody wants it."""
    if _Process.tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")

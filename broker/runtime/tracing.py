"""Traces. The only module that uses OpenTelemetry, whose API does nothing until an SDK is configured.

Gateways and workers configure one if it is installed (the extra `otel`) and OTEL_EXPORTER_OTLP_ENDPOINT is set; its
other variables apply too. An application that uses `Broker` with an SDK of its own has our spans in its traces.

A generation's trace begins with the request that created it, whose `traceparent` is stored in its meta hash: the wait
in the queue, each attempt, and each response that follows it are its children, in any process.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker.runtime.environment import read_variable
from broker.runtime.process import install_command
from broker.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SEND_WITHIN = 3.0
"""Seconds at the end of a process for sending the remaining spans. The exporter alone waits ten for a collector that
accepts connections and does not respond, and the SDK thirty."""
log = logging.getLogger("tokencast.trace")
Value = str | int | float | Sequence[str]
Kind = Literal["internal", "server", "client"]
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}

_TRACER = trace.get_tracer("tokencast", __version__)
_PROPAGATOR = TraceContextTextMapPropagator()


def configure_tracing(service: str) -> Callable[[], None]:
    """Set up tracing, once per process. Call the returned function at the end of the process: it sends the remaining
    spans within SEND_WITHIN."""
    if not _is_wanted():
        return _nothing
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(
            "tracing is off: an OTLP endpoint is set, but OpenTelemetry is not installed: %s", install_command("otel")
        )
        return _nothing
    if (read_variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or read_variable("OTEL_EXPORTER_OTLP_PROTOCOL")) == "grpc":
        log.warning("traces are sent as http/protobuf, not as grpc: the endpoint must be that of OTLP over HTTP")
    # Those of the environment stand above ours.
    ours = Resource({"service.name": service, "service.version": __version__, "service.instance.id": str(uuid.uuid4())})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # that would wait again, without a limit
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return partial(_shut_down, provider)


def _is_wanted() -> bool:
    if (read_variable("OTEL_SDK_DISABLED") or "").lower() == "true" or read_variable("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(read_variable("OTEL_EXPORTER_OTLP_ENDPOINT") or read_variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def _shut_down(provider: TracerProvider) -> None:
    sending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
    sending.start()
    sending.join(SEND_WITHIN)
    if sending.is_alive():
        log.warning("the last spans were lost: no response from the OTLP collector within %g s", SEND_WITHIN)


def _nothing() -> None:
    pass


def tracing() -> bool:
    """Return whether spans are recorded."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class Spanned:
    """A span, with attributes as keyword arguments or by their names."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def note(self, **attributes: Value | None) -> None:
        """Set attributes that are not None. A `__` in a name stands for a dot."""
        self.note_all({name.replace("__", "."): value for name, value in attributes.items()})

    def note_all(self, attributes: Mapping[str, Value | None]) -> None:
        """Set attributes that are not None."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def failed(self, why: str) -> None:
        """Set the status to an error."""
        self._span.set_status(StatusCode.ERROR, why)

    def rename(self, name: str) -> None:
        """Set the name."""
        self._span.update_name(name)


@contextmanager
def span(name: str, parent: str = "", *, kind: Kind = "internal", **attributes: Value) -> Generator[Spanned]:
    """Record a span around a block, as a child of the `traceparent`, or of the current span without one."""
    with _TRACER.start_as_current_span(
        name, _context(parent), kind=_KINDS[kind], record_exception=False, set_status_on_exception=False
    ) as started:
        spanned = Spanned(started)
        spanned.note(**attributes)
        yield spanned


def past_span(name: str, parent: str, began: float, ended: float, **attributes: Value) -> None:
    """Record a span of the past, from and to in unix seconds."""
    started = _TRACER.start_span(name, _context(parent), start_time=int(began * 1e9))
    Spanned(started).note(**attributes)
    started.end(int(max(began, ended) * 1e9))


def mark(event: str) -> None:
    """Add an event to the current span."""
    trace.get_current_span().add_event(event)


def _context(parent: str) -> Context | None:
    return _PROPAGATOR.extract({"traceparent": parent}) if parent else None


def trace_id() -> str:
    """Return the id of the current trace; "" if there is none."""
    context = trace.get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""


def traceparent() -> str:
    """Return the `traceparent` of the current span; "" if there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")

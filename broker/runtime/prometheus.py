"""The response of `/metrics`, in Prometheus's formats. The only module that uses the Prometheus client: processes count
in `counters.py`, and the figures are collected at each scrape.

Gateways that share a port respond as one: the one that is scraped adds up the figures that the others write to
TOKENCAST_METRICS_DIR. (The client's own multiprocess mode counts in memory-mapped files at each event, and does not
support collectors.) The counters of a process that has ended stay in the sums, so counters never decrease.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from broker.runtime.counters import ROUND_TRIPS, Buckets, Labels
from broker.version import __version__

WRITE_EVERY = 1.0  # seconds
STALE_AFTER = 10.0  # seconds without a write after which the gauges of a process are ignored
_GREATEST = frozenset({"tokencast_build_info", "tokencast_subscriber_lag_events"})
_LEAST = frozenset({"process_start_time_seconds"})


class Families:
    """Builder for the metrics of one response."""

    def __init__(self) -> None:
        self.all: list[Metric] = []

    def counter(self, name: str, text: str, values: Mapping[Labels, float], labels: Labels = ()) -> None:
        """Add a counter. `name` is without `_total`."""
        self._simple("counter", name, "_total", text, values, labels)

    def gauge(self, name: str, text: str, values: Mapping[Labels, float], labels: Labels = ()) -> None:
        """Add a gauge."""
        self._simple("gauge", name, "", text, values, labels)

    def _simple(
        self, kind: str, name: str, suffix: str, text: str, values: Mapping[Labels, float], labels: Labels
    ) -> None:
        metric = Metric(name, text, kind)
        for key, value in values.items():
            metric.add_sample(name + suffix, dict(zip(labels, key, strict=True)), float(value))
        self.all.append(metric)

    def histogram(self, name: str, text: str, values: Mapping[Labels, Buckets], labels: Labels = ()) -> None:
        """Add a histogram."""
        metric = Metric(name, text, "histogram")
        for key, buckets in values.items():
            named = dict(zip(labels, key, strict=True))
            bounds = [*map(repr, buckets.bounds), "+Inf"]
            for bound, count in zip(bounds, itertools.accumulate(buckets.counts), strict=True):
                metric.add_sample(f"{name}_bucket", {**named, "le": bound}, count)
            metric.add_sample(f"{name}_count", named, sum(buckets.counts))
            metric.add_sample(f"{name}_sum", named, buckets.sum)
        self.all.append(metric)


class Exposition:
    """The metrics of this process and of those that share its port. `run` must run for the life of the process."""

    def __init__(self, collect: Callable[[Families], None], folder: str | None = None) -> None:
        self._collect = collect
        self._own = Path(folder) / f"{os.getpid()}-{secrets.token_hex(3)}.json" if folder else None
        self._process = ProcessCollector(registry=None)
        self._delays = Buckets(ROUND_TRIPS)

    async def run(self) -> None:
        """Measure the delay of the event loop and share the metrics every second, until cancelled."""
        try:
            while True:
                due = time.monotonic() + WRITE_EVERY
                await asyncio.sleep(WRITE_EVERY)
                self._delays.observe(max(0.0, time.monotonic() - due))
                self._write()
        finally:
            self._write()

    def answer(self, accept: str, shared: Families) -> tuple[bytes, str]:
        """Return the body and its content type. `shared`: metrics that are equal in all processes and not added up."""
        try:
            encode, content_type = choose_encoder(accept)
        except (ValueError, TypeError):  # an invalid version
            encode, content_type = choose_encoder("")
        metrics = merge_metrics(self._other_processes(), self._families()) if self._own else self._families()
        return encode(_StaticCollector([*metrics, *shared.all])), content_type

    def _families(self) -> list[Metric]:
        families = Families()
        families.gauge("tokencast_build_info", "Version of the running process.", {(__version__,): 1}, ("version",))
        families.histogram("tokencast_loop_delay_seconds", "Delay of the event loop's timers.", {(): self._delays})
        self._collect(families)
        return [*families.all, *self._process.collect()]

    def _write(self) -> None:
        """Write this process's metrics atomically: other processes read the file at any time."""
        if self._own is None:
            return
        lines = [(m.name, m.documentation, m.type, [s[:3] for s in m.samples]) for m in self._families()]
        draft = self._own.with_suffix(".new")
        with contextlib.suppress(OSError):  # the directory has been removed: all processes are stopping
            draft.write_bytes(msgspec.json.encode(lines))
            draft.replace(self._own)

    def _other_processes(self) -> Iterable[Metric]:
        assert self._own is not None  # noqa: S101 - checked by the caller
        for path in sorted(self._own.parent.glob("*.json")):
            if path == self._own:
                continue
            try:
                lines, age = _LINES.decode(path.read_bytes()), time.time() - path.stat().st_mtime
            except (OSError, msgspec.DecodeError):
                continue
            for name, text, kind, samples in lines:
                if kind != "gauge" or age < STALE_AFTER:
                    metric = Metric(name, text, kind)
                    for sample in samples:
                        metric.add_sample(*sample)
                    yield metric


_LINES = msgspec.json.Decoder(list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]])


def merge_metrics(*many: Iterable[Metric]) -> list[Metric]:
    """Merge metrics by name. Samples with the same labels are added up; for a few gauges the maximum or minimum
    counts."""
    metrics: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for metric in itertools.chain(*many):
        known = values.setdefault(metric.name, {})
        metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        combine = max if metric.name in _GREATEST else min if metric.name in _LEAST else _plus
        for name, labels, value, *_ in metric.samples:
            key = name, tuple(labels.items())
            known[key] = combine(known[key], value) if key in known else value
    for name, metric in metrics.items():
        metric.samples = [Sample(sample, dict(labels), value) for (sample, labels), value in values[name].items()]
    return list(metrics.values())


def _plus(one: float, other: float) -> float:
    return one + other


class _StaticCollector(Collector):
    """Passes finished metrics to the client's encoders, which require a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        """Return the metrics."""
        return self._metrics

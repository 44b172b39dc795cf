"""What `/metrics` answers, in Prometheus's formats. The only file that knows the Prometheus client, and what a process
counts is not counted with it: its figures are collected when somebody asks.

Several gateways that share a port answer as one: whichever of them is asked adds up what the others have written into
TOKENCAST_METRICS_DIR. (The client's own way for that counts in memory-mapped files as things happen, and knows no
collectors.) What a process that has ended had counted stays in the sums, so no counter ever goes back.
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
ABSENT = 10.0  # seconds after which a process that writes no more is gone, and its gauges with it
_GREATEST = frozenset({"tokencast_build_info", "tokencast_subscriber_lag_events"})
_LEAST = frozenset({"process_start_time_seconds"})


class Families:
    """The metrics of one answer, as they are put together."""

    def __init__(self) -> None:
        self.all: list[Metric] = []

    def counter(self, name: str, text: str, values: Mapping[Labels, float], labels: Labels = ()) -> None:
        """`name` without `_total`."""
        self._simple("counter", name, "_total", text, values, labels)

    def gauge(self, name: str, text: str, values: Mapping[Labels, float], labels: Labels = ()) -> None:
        self._simple("gauge", name, "", text, values, labels)

    def _simple(
        self, kind: str, name: str, suffix: str, text: str, values: Mapping[Labels, float], labels: Labels
    ) -> None:
        metric = Metric(name, text, kind)
        for key, value in values.items():
            metric.add_sample(name + suffix, dict(zip(labels, key, strict=True)), float(value))
        self.all.append(metric)

    def histogram(self, name: str, text: str, values: Mapping[Labels, Buckets], labels: Labels = ()) -> None:
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
    """One process's metrics, and those of the processes beside it. `run` for ever."""

    def __init__(self, collect: Callable[[Families], None], folder: str | None = None) -> None:
        self._collect = collect
        self._own = Path(folder) / f"{os.getpid()}-{secrets.token_hex(3)}.json" if folder else None
        self._process = ProcessCollector(registry=None)
        self._delays = Buckets(ROUND_TRIPS)

    async def run(self) -> None:
        """Notes how late the event loop is, which everything here feels."""
        try:
            while True:
                due = time.monotonic() + WRITE_EVERY
                await asyncio.sleep(WRITE_EVERY)
                self._delays.observe(max(0.0, time.monotonic() - due))
                self._write()
        finally:
            self._write()

    def answer(self, accept: str, shared: Families) -> tuple[bytes, str]:
        """Body and content type. `shared`: what is the same for all processes, and not to be added up."""
        try:
            encode, content_type = choose_encoder(accept)
        except (ValueError, TypeError):  # a version that is none
            encode, content_type = choose_encoder("")
        metrics = added_up(self._others(), self._families()) if self._own else self._families()
        return encode(_Given([*metrics, *shared.all])), content_type

    def _families(self) -> list[Metric]:
        families = Families()
        families.gauge("tokencast_build_info", "Version of the running process.", {(__version__,): 1}, ("version",))
        families.histogram("tokencast_loop_delay_seconds", "Delay of the event loop's timers.", {(): self._delays})
        self._collect(families)
        return [*families.all, *self._process.collect()]

    def _write(self) -> None:
        """Whole or not at all: others read it at any time."""
        if self._own is None:
            return
        lines = [(m.name, m.documentation, m.type, [s[:3] for s in m.samples]) for m in self._families()]
        draft = self._own.with_suffix(".new")
        with contextlib.suppress(OSError):  # the directory has been removed: everything ends
            draft.write_bytes(msgspec.json.encode(lines))
            draft.replace(self._own)

    def _others(self) -> Iterable[Metric]:
        assert self._own is not None  # noqa: S101 - where the caller looks
        for path in sorted(self._own.parent.glob("*.json")):
            if path == self._own:
                continue
            try:
                lines, age = _LINES.decode(path.read_bytes()), time.time() - path.stat().st_mtime
            except (OSError, msgspec.DecodeError):
                continue
            for name, text, kind, samples in lines:
                if kind != "gauge" or age < ABSENT:
                    metric = Metric(name, text, kind)
                    for sample in samples:
                        metric.add_sample(*sample)
                    yield metric


_LINES = msgspec.json.Decoder(list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]])


def added_up(*many: Iterable[Metric]) -> list[Metric]:
    """One metric for each name; of samples that differ in nothing but their process the sum, or for a few gauges the
    greatest or the least."""
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


class _Given(Collector):
    """For the client's encoders, which want a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics

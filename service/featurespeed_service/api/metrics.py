"""Metrics in Prometheus' format: of this process, and of the service as the database knows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from featurespeed_service.store.counters import CELL_BUCKETS, CELL_SECONDS, Counted
from featurespeed_service.store.records import Statistics

PREFIX = "featurespeed_"
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTERS = {
    "attempts": ("Attempts at a job that dispatchers have started", ()),
    "worker_crashes": ("Cells whose worker or node died", ()),
    "lease_losses": ("Leases that a dispatcher lost while it worked under them", ()),
    "job_failures": ("Jobs that failed, by their error", ("type",)),
}
"""What dispatchers count beside the time of cells: name, help, labels."""


class Metrics:
    """The registry of one application."""

    def __init__(self, version: str) -> None:
        own = self._own = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=own)
        Gauge(f"{PREFIX}build_info", "Version of the program", ["version"], registry=own).labels(version).set(1)
        labels = ["method", "route", "status"]
        self._requests = Counter(f"{PREFIX}http_requests", "Requests answered", labels, registry=own)
        self._seconds = Histogram(
            f"{PREFIX}http_request_seconds",
            "Time to the head of the answer",
            ["route", "status"],
            buckets=SECONDS_BUCKETS,
            registry=own,
        )
        self.event_streams = Gauge(f"{PREFIX}event_streams", "Event streams that are open", registry=own)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is its template, so that the number of labels is bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route, str(status)).observe(seconds)

    def text(self, statistics: Statistics | None) -> bytes:
        """Everything, as Prometheus reads it; ``None`` where the database cannot tell its part."""
        store = CollectorRegistry()
        store.register(_Families(_store_up(statistics is not None)))
        if statistics is not None:
            store.register(_Families(_of_store(statistics)))
        return generate_latest(self._own) + generate_latest(store)


class _Families(Collector):
    """Metrics that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        return self._families


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", text, value=value)


def _store_up(is_up: bool) -> Iterator[Metric]:
    yield _gauge("store_up", "Whether the database answered this scrape", float(is_up))


def _of_store(found: Statistics) -> Iterator[Metric]:
    by_status = GaugeMetricFamily(f"{PREFIX}jobs", "Jobs by status", labels=["status"])
    for status, count in found.jobs.items():
        by_status.add_metric([status], count)
    yield by_status
    yield _gauge("queue_depth", "Jobs that wait to be started", found.jobs["queued"])
    yield _gauge("queue_oldest_age_seconds", "Time since the oldest waiting job was sent", found.oldest_queued_seconds)
    yield _gauge("running_jobs", "Jobs that are running", found.jobs["running"])
    yield _gauge("lease_age_seconds", "Time since the oldest lease was renewed", found.lease_age_seconds)
    yield _gauge("dataset_bytes", "Size of all datasets that are kept", found.dataset_bytes)
    if found.heartbeat_age_seconds is not None:
        text = "Time since a dispatcher last showed life"
        yield _gauge("dispatcher_heartbeat_age_seconds", text, found.heartbeat_age_seconds)
    yield from _counters(found.counted)
    yield _cell_seconds(found.counted)


def _counters(counted: Counted) -> Iterator[Metric]:
    for name, (text, labels) in COUNTERS.items():
        family = CounterMetricFamily(f"{PREFIX}{name}", text, labels=labels)
        values = {label: value for (counter, label, _), value in counted.items() if counter == name}
        for label, value in (values if labels else {"": 0.0, **values}).items():
            family.add_metric([label] if labels else [], value)
        yield family


def _cell_seconds(counted: Counted) -> Metric:
    family = HistogramMetricFamily(f"{PREFIX}{CELL_SECONDS}", "Time from a cell's start to its result", labels=["kind"])
    for kind in sorted({label for name, label, _ in counted if name == CELL_SECONDS}):
        total, buckets = 0.0, []
        for bound in CELL_BUCKETS:
            total += counted.get((CELL_SECONDS, kind, repr(bound)), 0.0)
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
        family.add_metric([kind], buckets, counted.get((f"{CELL_SECONDS}_sum", kind, ""), 0.0))
    return family

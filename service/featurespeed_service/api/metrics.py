"""Metrics of one application, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from featurespeed_service.store.interface import JobStore


class _Jobs(Collector):
    """Counts of jobs, taken from the store when they are asked for."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not need the store."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Jobs by status, the length of the queue, and the age of the last heartbeat."""
        counts = self._store.counts()
        by_status = GaugeMetricFamily("featurespeed_jobs", "Jobs by status", labels=["status"])
        for status, count in counts.items():
            by_status.add_metric([status], count)
        yield by_status
        yield GaugeMetricFamily("featurespeed_queue_depth", "Jobs that wait to be started", value=counts["queued"])
        if (age := self._store.last_heartbeat()) is not None:
            name, text = "featurespeed_dispatcher_heartbeat_age_seconds", "Time since a dispatcher last showed life"
            yield GaugeMetricFamily(name, text, value=age)


class Metrics:
    """The registry of one application."""

    def __init__(self, store: JobStore) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(store))
        labels = ["method", "route", "status"]
        self._requests = Counter("featurespeed_requests", "Requests answered", labels, registry=self._registry)
        self._seconds = Histogram(
            "featurespeed_request_seconds", "Time to the head of the answer", ["route"], registry=self._registry
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is its template, so that the number of labels is bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

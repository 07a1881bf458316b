"""Traces that are sent to a collector by OTLP over HTTP; needs the extra ``telemetry``. See ``telemetry.start``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
from opentelemetry.metrics import NoOpUpDownCounter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TraceState
from opentelemetry.util.http import OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS, get_custom_headers
from opentelemetry.util.types import AnyValue, Attributes

from featurespeed.version import __version__
from featurespeed_service import logs
from featurespeed_service.telemetry import Traces

if TYPE_CHECKING:
    from fastapi import FastAPI

    from featurespeed_service.store.records import Lease
    from featurespeed_service.store.sql import SqlStore

log = logs.get(__name__)

FLUSH_SECONDS = 1.0
"""How long the end of a process waits for its last spans to be taken."""
NO_COUNTER = NoOpUpDownCounter("connections")
"""Metrics are Prometheus's (``/metrics``)."""
PROBES = "/(livez|readyz|metrics)$"
SECRET_HEADERS = [".*authorization.*", ".*cookie.*", ".*api-key.*"]
"""Blanked, should an operator have the instrumentation record headers."""


class OtlpTraces(Traces):
    """Spans go out in batches, from a thread of their own; OpenTelemetry's variables choose how and which."""

    def __init__(self, process: str, endpoint: str | None) -> None:
        self._provider = TracerProvider(resource=_resource(process), shutdown_on_exit=False)
        self._provider.sampler = QueriesWithinWork(self._provider.sampler)
        self._provider.add_span_processor(BatchSpanProcessor(ToldOnce(OTLPSpanExporter(endpoint))))
        self._tracer = self._provider.get_tracer("featurespeed", __version__)
        self._attempts: dict[Lease, Span] = {}

    def follow_requests(self, app: FastAPI, store: SqlStore) -> None:
        """A span for each request but probes, in its scope under ``logs.SPAN``; its queries lie below it."""
        # SQLAlchemyInstrumentor.instrument would also patch sqlalchemy.ext.asyncio, which needs greenlet
        tracer = self._provider.get_tracer("featurespeed.sql", __version__)
        EngineTracer(tracer, store.engine, NO_COUNTER)  # type: ignore[no-untyped-call]
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            server_request_hook=_put_into_scope,
            excluded_urls=PROBES,
            exclude_spans=["receive", "send"],
            http_capture_headers_sanitize_fields=[
                *SECRET_HEADERS,
                *get_custom_headers(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS),
            ],
        )

    def attempt_started(self, lease: Lease, kind: str) -> None:
        """Begin a span ``job``, a trace of its own: attempts and requests of one job share its id."""
        attributes: dict[str, AnyValue] = {"job.id": lease.job_id, "job.kind": kind, "job.attempt": lease.attempt}
        self._attempts[lease] = self._tracer.start_span("job", Context(), SpanKind.CONSUMER, attributes)

    def attempt_ended(self, lease: Lease, status: str, error: str | None = None) -> None:
        """End it."""
        if (span := self._attempts.pop(lease, None)) is None:
            return
        span.set_attribute("job.status", status)
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR, error)
        span.end()

    def close(self) -> None:
        """Send what is left, for FLUSH_SECONDS at most."""
        for lease in list(self._attempts):  # the store could not be told
            self.attempt_ended(lease, "unknown")
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)


def _resource(process: str) -> Resource:
    ours = {"service.name": f"featurespeed-{process}", "service.version": __version__}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _put_into_scope(span: Span, scope: dict[str, Any]) -> None:
    scope[logs.SPAN] = span


class QueriesWithinWork(Sampler):
    """Drops the spans of queries that belong to no span under way: those of polling would flood the collector."""

    def __init__(self, of_others: Sampler) -> None:
        self._of_others = of_others

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Drop it, or let the sampler for all others choose."""
        if kind is SpanKind.CLIENT and not trace.get_current_span(parent_context).is_recording():
            return SamplingResult(Decision.DROP)
        return self._of_others.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Its name, for people."""
        return f"QueriesWithinWork({self._of_others.get_description()})"


class ToldOnce(SpanExporter):
    """An exporter whose failures are told once, until it succeeds again: the SDK would tell of each try."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)  # of a queue that is full

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; one that is not taken is dropped."""
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            log.warning("the collector does not take spans; they are dropped until it does")
        if self._fails and not fails:
            log.info("the collector takes spans again")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        """Send no more."""
        self._exporter.shutdown()

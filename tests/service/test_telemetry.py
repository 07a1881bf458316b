"""Traces: what a collector of OpenTelemetry receives of a service, and what becomes of a service without one."""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from featurespeed_service import telemetry
from featurespeed_service.settings import Settings
from featurespeed_service.store.records import Lease
from tests.service import stand_in
from tests.service.service_process import ServiceProcess, wait_until
from tests.service.specs import spec
from tests.service.sse import read_events

TOKEN = "fsk_a_5ecret"
PASSWORD = "hunter2"
LEASE = Lease("job_" + "a1" * 12, 1)


class Collector:
    """Receives OTLP over HTTP."""

    def __init__(self, port=0):
        collector, self.bodies = self, []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    collector.bodies.append(body)
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def spans(self, name="", **attributes):
        """Spans whose name begins so, with these attributes; also what process they are of, as ``service.name``."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                own = values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    found += [(span, own | values(span.attributes)) for span in scope.spans]
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}.items()
        return [(span, has) for span, has in found if span.name.startswith(name) and wanted <= has.items()]


def values(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in attributes}


@pytest.fixture
def promptly(monkeypatch):
    """Spans are sent at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.mark.usefixtures("promptly")
def test_request_queries_and_attempt_of_a_job_reach_the_collector(tmp_path, monkeypatch, postgres):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", ".*")
    database = postgres.new_database().replace("@", f":{PASSWORD}@")
    with Collector() as collector:
        with ServiceProcess(tmp_path, database=database, otlp_endpoint=collector.url, cpus=2) as service:
            service.wait_ready()
            headers = {"Authorization": f"Bearer {TOKEN}"}
            job_id = service.http.post("/v1/jobs", json=spec(steps=5), headers=headers).json()["id"]
            read_events(service.http, job_id)
            failed = service.wait(service.submit(stand_in.BROKEN))
        ((post, told),) = collector.spans("POST /v1/jobs", job_id=job_id)
        assert (told["service.name"], told["tenant"]) == ("featurespeed-api", "local")
        assert len(told["request.id"]) == 16
        assert told["http.request.header.user_agent"].values  # headers are recorded, but those that are secret
        ((span, told),) = collector.spans("job", job_id=job_id)
        assert (told["job.kind"], told["job.attempt"], told["job.status"]) == ("measure", 1, "succeeded")
        assert told["service.name"] == "featurespeed-dispatcher"
        assert span.start_time_unix_nano < span.end_time_unix_nano
        ((_, told),) = collector.spans("job", job_id=failed["id"])
        assert (told["job.status"], told["error.type"]) == ("failed", "internal-error")

        queries = [(span, has) for span, has in collector.spans() if span.kind == Span.SPAN_KIND_CLIENT]
        known = {span.span_id for span, _ in collector.spans()}
        assert all(span.parent_span_id in known for span, _ in queries)
        assert any(span.parent_span_id == post.span_id and span.name.startswith("INSERT") for span, _ in queries)
        assert not [has for _, has in queries if "max(events.seq)" in has.get("db.statement", "")]  # of the watcher
        assert not collector.spans("GET /readyz")
        text = "".join(str(ExportTraceServiceRequest.FromString(body)) for body in collector.bodies)
    assert job_id in text
    assert TOKEN not in text
    assert PASSWORD not in text
    assert not re.search("collector|Traceback", service.log.read_text())


@pytest.mark.usefixtures("promptly")
def test_a_collector_that_is_away_is_told_of_once(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.INFO, "featurespeed_service")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    traces = telemetry.start("api", Settings())
    for attempt in range(3000):  # more than the queue holds
        attempt_of(traces, attempt)
    wait_until(lambda: caplog.records, 20, "the line")
    with Collector(port) as collector:
        attempt_of(traces, 3000)
        wait_until(lambda: collector.spans("job", job_attempt=3000), 20, "the span")
        wait_until(lambda: caplog.records[1:], 20, "the other line")
        traces.close()
    lines = [record.msg["event"] for record in caplog.records]
    assert lines == [
        "the collector does not take spans; they are dropped until it does",
        "the collector takes spans again",
    ]


def attempt_of(traces, attempt):
    lease = Lease(LEASE.job_id, attempt)
    traces.attempt_started(lease, "measure")
    traces.attempt_ended(lease, "succeeded")


@pytest.mark.usefixtures("promptly")
def test_a_collector_that_never_answers_holds_no_process():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        traces = telemetry.start("api", Settings(otlp_endpoint=f"http://127.0.0.1:{deaf.getsockname()[1]}/"))
        attempt_of(traces, 1)
        began = time.monotonic()
        traces.close()
        assert time.monotonic() - began < 8  # the exporter itself would wait for ten seconds, the SDK for thirty


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["FEATURESPEED_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_without_the_packages_it_says_what_to_install(tmp_path, name):
    code = """
import sys
sys.modules["opentelemetry.sdk"] = None  # FastAPI brings the package's API
from featurespeed_service.serve import serve
sys.exit(serve("127.0.0.1", 0))
"""
    found = run(code, FEATURESPEED_DATA_DIR=str(tmp_path), **{name: "http://127.0.0.1:4318"})
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"featurespeed: {name} is set: pip install 'featurespeed[telemetry]'")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("is_on", [True, False])
def test_it_is_imported_only_if_it_is_on_and_brings_neither_ray_nor_torch(tmp_path, is_on):
    code = """
import sys
from contextlib import closing
from featurespeed_service import serve, telemetry
from featurespeed_service.api.app import create_app
from featurespeed_service.opening import opened, settings_of
settings = settings_of()
with closing(opened(settings)) as store, closing(telemetry.start("api", settings)) as traces:
    traces.follow_requests(create_app(settings, store), store)
print(sorted({"ray", "torch", "opentelemetry.sdk", "opentelemetry.exporter"} & set(sys.modules)))
"""
    chosen = {"FEATURESPEED_OTLP_ENDPOINT": "http://127.0.0.1:4318"} if is_on else {}
    found = run(code, FEATURESPEED_DATA_DIR=str(tmp_path), **chosen)
    assert (found.stdout, found.stderr) == (f"{['opentelemetry.exporter', 'opentelemetry.sdk'] if is_on else []}\n", "")

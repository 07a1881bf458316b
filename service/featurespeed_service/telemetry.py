"""Traces by OpenTelemetry: requests, and attempts at jobs. Nothing of it is imported unless a collector is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from featurespeed_service.opening import CannotStart
from featurespeed_service.settings import PREFIX, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from featurespeed_service.store.records import Lease
    from featurespeed_service.store.sql import SqlStore

STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables for the same; the setting goes before them."""
SIGNAL = "/v1/traces"
"""What OTLP/HTTP puts behind the address of a collector."""


class Traces:
    """What a process tells of its work; this one tells nothing: no collector is named."""

    def follow_requests(self, app: FastAPI, store: SqlStore) -> None:
        """A span for each request, with its queries below it."""

    def attempt_started(self, lease: Lease, kind: str) -> None:
        """Begin the span of an attempt at a job."""

    def attempt_ended(self, lease: Lease, status: str, error: str | None = None) -> None:
        """End it: with the job's status then, and the type of the job's error."""

    def close(self) -> None:
        """Send what is left, as far as that takes little time."""


NO_TRACES = Traces()


def start(process: str, settings: Settings) -> Traces:
    """The traces of this process, ``api`` or ``dispatcher``; raises CannotStart where packages are missing."""
    named = settings.otlp_endpoint
    if not named and not any(os.environ.get(name) for name in STANDARD):
        return NO_TRACES
    try:
        from featurespeed_service.otlp import OtlpTraces
    except ImportError as error:
        what = f"{PREFIX}OTLP_ENDPOINT" if named else " or ".join(name for name in STANDARD if os.environ.get(name))
        raise CannotStart(f"{what} is set: pip install 'featurespeed[telemetry]' ({error})") from error
    return OtlpTraces(process, named and named.rstrip("/").removesuffix(SIGNAL) + SIGNAL)

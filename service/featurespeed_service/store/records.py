"""What the store takes and gives, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from featurespeed.contract import Job, Progress, Status
from featurespeed_service.store.schema import LOCAL_TENANT

EventType = Literal["status", "progress", "measurement"]

TRANSITIONS: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""From each status, those that a job may have next. ``running`` to ``queued`` is an attempt that ended early."""

DEAD: frozenset[Status] = frozenset({"failed", "cancelled"})
"""Ended without a report: such a job stays, with its error and its finished cells, until it is retried or pruned."""


@dataclass(frozen=True)
class Lease:
    """The right to write a running job; ``attempt`` is the fence."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class Claim:
    """A job to work on: the lease, the job, and the cells (key to JSON) that earlier attempts finished."""

    lease: Lease
    job: Job
    cells: Mapping[str, str]
    tenant: str = LOCAL_TENANT


@dataclass(frozen=True)
class News:
    """What a running job has to tell: its progress, finished cells (key to JSON) to keep, measurements (JSON).

    ``in_doubt``: some of it may have been recorded already, without the dispatcher's hearing so.
    """

    progress: Progress
    cells: Mapping[str, str] = field(default_factory=dict)
    measurements: Sequence[str] = ()
    in_doubt: bool = False


@dataclass(frozen=True)
class Event:
    """One event of a job; ``seq`` rises, with gaps; ``data`` is JSON.

    ``status`` carries a contract.Job, ``progress`` a contract.Progress (the newest alone is kept), ``measurement`` a
    contract.MeasurementEvent.
    """

    seq: int
    type: EventType
    data: str


@dataclass(frozen=True)
class Result:
    """A report as JSON text, and the SHA-256 of that text."""

    text: str
    sha256: str


@dataclass(frozen=True)
class Statistics:
    """How the service fares, for its metrics. Ages in seconds; 0 where nothing waits or runs."""

    jobs: Mapping[Status, int]
    oldest_queued_seconds: float
    lease_age_seconds: float
    """Since the lease that was renewed longest ago was renewed."""
    heartbeat_age_seconds: float | None
    dataset_bytes: int
    counted: Mapping[tuple[str, str, str], float]

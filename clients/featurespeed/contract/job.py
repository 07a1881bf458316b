"""Job: a JobRequest on its way through the service, and what the service says about it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from featurespeed.contract.base import Model
from featurespeed.contract.request import JobRequest, Kind

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})


class Progress(Model):
    """How far a job is: cells (what is computed as one piece) done of all, a fraction in [0, 1], what is being done."""

    cells_done: int
    cells_total: int
    fraction: Annotated[float, Field(ge=0, le=1)]
    message: str = ""


class MeasurementEvent(Model):
    """One seed measured at one step: the angles θ_1 … θ_L in radians (``None`` where undefined)."""

    seed: int
    step: int
    loss: float
    angles: tuple[float | None, ...]


class JobError(Model):
    """Why a job failed: a stable type, and a sentence for the user."""

    type: str
    detail: str


class Job(Model):
    """One job as the service knows it; ``attempt`` counts how often a worker has started it.

    ``retry_of``: the failed or cancelled job that this one repeats; its finished cells were taken over.
    """

    id: str
    kind: Kind
    status: Status
    progress: Progress
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    error: JobError | None
    request: JobRequest
    retry_of: str | None = None


class JobPage(Model):
    """Jobs, newest first; ``next_cursor`` continues the listing, ``None`` at its end."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


class FieldError(Model):
    """One field that was refused: where, the value given, and the bound or expectation that it breaks."""

    field: str
    value: Any
    bound: str


class Problem(Model):
    """An RFC 9457 problem (``application/problem+json``)."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()

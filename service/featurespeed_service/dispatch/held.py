"""The jobs that a dispatcher holds, and all that the store hears of them."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from featurespeed.contract import Job, JobError, SpecError
from featurespeed_service import logs
from featurespeed_service.dispatch.running import RunningJob
from featurespeed_service.job_errors import ATTEMPTS_EXHAUSTED, INTERNAL_ERROR
from featurespeed_service.store.counters import Tally
from featurespeed_service.store.errors import LeaseLost, StoreUnavailable
from featurespeed_service.store.interface import ClaimOrder, LeaseStore
from featurespeed_service.store.records import Lease
from featurespeed_service.telemetry import Traces
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.ray_tasks import job_error
from featurespeed_workers.stages import Engine

log = logs.get(__name__)

CLAIM_SECONDS = 0.1
"""How long a dispatcher may go on claiming before it looks after the jobs that it has."""
RECORDS_PER_SECOND = 40
LAST_RECORD_SECONDS = 2.0
"""Of so many jobs a second the news goes to the store: of a single job at once, with many of each together, but no
later than this. A job's end never waits."""
JOBS_PER_TRANSACTION = 32
NODE_DIED = JobError(type=ATTEMPTS_EXHAUSTED, detail="the dispatcher lost its Ray node each time")


class HeldJobs:
    """Jobs from their claim until the store has their end, or another has them.

    Each method but ``give_back`` is a step that may be taken again if the store could not be reached.
    ``let_go`` is called with a job when it is held no longer, whatever still runs of it.
    """

    def __init__(self, store: LeaseStore, engine: Engine, traces: Traces, let_go: Callable[[RunningJob], None]) -> None:
        self._store = store
        self._engine = engine
        self._traces = traces
        self._let_go = let_go
        self._owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._jobs: dict[Lease, RunningJob] = {}
        self.tally = Tally()

    def __iter__(self) -> Iterator[RunningJob]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: RunningJob) -> bool:
        return job.lease in self._jobs

    def beat(self) -> None:
        """Show that this dispatcher lives, and what it has counted."""
        self._store.beat(self._owner, self.tally.counted)
        self.tally = Tally()

    def renew(self) -> None:
        """Extend all leases; one may have run out in an outage, and another dispatcher have taken the job."""
        for lease in self._store.renew_all(self._jobs):
            self._lost(lease)

    def claim(self, order: ClaimOrder) -> None:
        """Take jobs, as many as ``order`` allows or as time does."""
        end = time.monotonic() + CLAIM_SECONDS
        while time.monotonic() < end and (claim := self._store.claim(self._owner, order)):
            log.info("attempt started", **said_of(claim.lease), cells_done=len(claim.cells))
            self._traces.attempt_started(claim.lease, claim.job.kind)
            self.tally.count("attempts")
            self._jobs[claim.lease] = RunningJob(claim, self._engine)

    def heed_stop_requests(self) -> None:
        """Let go of jobs that were cancelled, or that another has."""
        for lease, what in self._store.stop_requests(self._jobs).items():
            try:
                if what == "cancel":
                    self._ended(lease, self._store.confirm_cancelled(lease))
                else:
                    self._lost(lease)
            except LeaseLost:
                self._lost(lease)

    def record(self) -> None:
        """Bring the jobs' news to the store, several jobs at a time."""
        now = time.monotonic()
        last = now - min((len(self._jobs) - 1) / RECORDS_PER_SECOND, LAST_RECORD_SECONDS)
        due = [job for job in self if job.changed and (job.is_ending or job.written_at <= last)]
        for first in range(0, len(due), JOBS_PER_TRANSACTION):
            self._record(due[first : first + JOBS_PER_TRANSACTION], now)

    def _record(self, jobs: Sequence[RunningJob], now: float) -> None:
        try:
            lost = self._store.record_all({job.lease: job.news for job in jobs})
        except StoreUnavailable:  # it may have been written, and the answer lost
            for job in jobs:
                job.in_doubt = True
            raise
        for job in jobs:
            job.written(now)
        for lease in lost:
            self._lost(lease)

    def end(self) -> None:
        """Let jobs end of which nothing more will be computed; the store has all their cells."""
        for job in [job for job in self if job.is_ending]:
            if job.is_complete and job.outcome is None:
                job.outcome = self._assembled(job)
            try:
                if isinstance(job.outcome, JobError):
                    self._ended(job.lease, self._store.fail(job.lease, job.outcome))
                elif job.outcome is not None:
                    self._ended(job.lease, self._store.succeed(job.lease, job.outcome))
            except LeaseLost:
                self._lost(job.lease)

    def _assembled(self, job: RunningJob) -> str | JobError:
        wall_seconds = (datetime.now(UTC) - (job.job.started_at or job.job.created_at)).total_seconds()
        try:
            return self._engine.assemble(job.request, job.done, wall_seconds=wall_seconds).model_dump_json()
        except (MeasurementError, SpecError) as error:
            return job_error(error)
        except Exception as error:
            log.exception("no report", **said_of(job.lease))
            return internal_error(job.lease, repr(error))

    def give_back(self, *, is_orderly: bool) -> None:
        """Let go of every lease, others may go on at once; a stop that is not orderly costs each job a start.

        The tasks end with the cluster's driver: nobody is told to stop them.
        """
        self._record([job for job in self if job.changed], time.monotonic())
        leases, self._jobs = list(self._jobs), {}
        for lease in leases:
            try:
                job = self._store.release(lease) if is_orderly else self._store.retry(lease, NODE_DIED)
                self._ended(lease, job)
            except LeaseLost:
                self._lost(lease)
        self.beat()
        self._store.retire(self._owner)

    def _ended(self, lease: Lease, job: Job) -> None:
        error = job.error.type if job.error is not None else None
        log.info("attempt ended", **said_of(lease), status=job.status, error=error)
        self._traces.attempt_ended(lease, job.status, error)
        if job.error is not None:
            self.tally.count("job_failures", job.error.type)
        self._forget(lease)

    def _lost(self, lease: Lease) -> None:
        log.warning("lease lost", **said_of(lease))
        self._traces.attempt_ended(lease, "lease lost")
        self.tally.count("lease_losses")
        self._forget(lease)

    def _forget(self, lease: Lease) -> None:
        if (job := self._jobs.pop(lease, None)) is not None:
            self._let_go(job)


def said_of(lease: Lease) -> dict[str, Any]:
    """What a line of the log says about the job that it is of."""
    return {"job_id": lease.job_id, "attempt": lease.attempt}


def internal_error(lease: Lease, text: str) -> JobError:
    """An error whose cause is for the log alone; both name one reference."""
    reference = secrets.token_hex(6)
    log.error("internal error", **said_of(lease), reference=reference, text=text)
    return JobError(type=INTERNAL_ERROR, detail=f"internal error; the service's log has it under reference {reference}")

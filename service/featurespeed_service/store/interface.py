"""The job store as an interface: what the API and a dispatcher ask of it; each method may raise ``errors.py``'s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from featurespeed.contract import TERMINAL, Job, JobError, JobPage, JobRequest, Kind, Progress, Status
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_service.store.errors import LeaseLost
from featurespeed_service.store.records import Claim, Event, Lease, News, Result, Statistics

ClaimOrder = Callable[[Collection[str]], Sequence[tuple[str, int | None]]]
"""From the tenants whose jobs wait, those that may claim, in order, with the most cells of the job (``None``: any)."""


class JobStore(ABC):
    """What the API asks of the store. Safe to call from several threads and processes."""

    @abstractmethod
    def of_tenant(self, tenant: str, max_active_jobs: int | None = None) -> JobStore:
        """The same store for one tenant: jobs of others are not found, new ones belong to it.

        ``max_active_jobs``: as many may be queued or running for :meth:`submit` to take another.
        """

    @property
    @abstractmethod
    def datasets(self) -> DatasetStore:
        """The datasets of this store's tenant."""

    @abstractmethod
    def revision(self) -> str | None:
        """The database's schema, as Alembic names it; ``migrating.head()`` is this program's."""

    @abstractmethod
    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> Job:
        """Queue a job, or return the one that the key has queued before.

        Raises IdempotencyConflict, KeyOfDeletedJob, QuotaExceeded.
        """

    @abstractmethod
    def resubmit(self, job_id: str) -> Job:
        """Queue the request of a failed or cancelled job again, as a new job that takes over its finished cells.

        However often it is asked for, it is one new job. Raises JobNotFound, WrongStatus, QuotaExceeded.
        """

    @abstractmethod
    def get(self, job_id: str) -> Job:
        """The job; raises JobNotFound."""

    @abstractmethod
    def page(
        self, *, status: Status | None = None, kind: Kind | None = None, cursor: str | None = None, limit: int = 50
    ) -> JobPage:
        """Jobs, newest first, by (created_at, id); raises InvalidCursor."""

    @abstractmethod
    def result(self, job_id: str) -> Result:
        """The report; raises JobNotFound, and WrongStatus unless the job has succeeded."""

    @abstractmethod
    def events(self, job_id: str, after: int = 0) -> Sequence[Event]:
        """Events with ``seq`` > ``after``, in order; none for an unknown job."""

    @abstractmethod
    def newest_events(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """The ``seq`` of each job's newest event; jobs that are gone are left out."""

    @abstractmethod
    def statistics(self, lease_seconds: float) -> Statistics:
        """How the service fares, of all tenants."""

    @abstractmethod
    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job, ask a running one to stop, leave a finished one as it is; raises JobNotFound."""

    @abstractmethod
    def delete(self, job_id: str) -> None:
        """Remove a finished job and all that belongs to it; raises JobNotFound, WrongStatus."""

    @abstractmethod
    def counts(self) -> Mapping[Status, int]:
        """Number of jobs in each status."""

    @abstractmethod
    def last_heartbeat(self) -> float | None:
        """Seconds since a dispatcher last showed that it lives; ``None`` if there is none."""


class LeaseStore(ABC):
    """What a dispatcher asks of the store. A write under a lease raises LeaseLost once another has the job."""

    @abstractmethod
    def claim(self, owner: str, order: ClaimOrder | None = None) -> Claim | None:
        """Lease the oldest job that waits or whose lease ran out, first in ``order``; ``None`` if there is none.

        A job that was started too often in a row without finishing a cell fails here, one that was asked to stop is
        cancelled here.
        """

    @abstractmethod
    def datasets_of(self, tenant: str) -> DatasetStore:
        """The datasets that a tenant's jobs may name."""

    def renew(self, lease: Lease) -> None:
        """Extend the lease by its full length from now."""
        _raise_lost(self.renew_all([lease]))

    @abstractmethod
    def renew_all(self, leases: Collection[Lease]) -> Collection[Lease]:
        """Extend leases in one transaction; returns those that are lost."""

    @abstractmethod
    def stop_requests(self, leases: Collection[Lease]) -> Mapping[Lease, Literal["cancel", "lost"]]:
        """Those of the leases whose job was asked to stop, or is no longer theirs."""

    def record(
        self,
        lease: Lease,
        *,
        progress: Progress,
        cells: Mapping[str, str] = MappingProxyType({}),
        measurements: Sequence[str] = (),
    ) -> None:
        """Keep finished cells (key to JSON), tell progress and measurements (JSON); on LeaseLost nothing of it."""
        _raise_lost(self.record_all({lease: News(progress, cells, measurements)}))

    @abstractmethod
    def record_all(self, news: Mapping[Lease, News]) -> Collection[Lease]:
        """Record the news of several jobs in one transaction; returns the leases that are lost, whose news are dropped.

        May be repeated: a cell that is kept already stays as it is.
        """

    @abstractmethod
    def succeed(self, lease: Lease, report: str) -> Job:
        """Finish with a report (JSON)."""

    @abstractmethod
    def fail(self, lease: Lease, error: JobError) -> Job:
        """Finish with an error for the user."""

    @abstractmethod
    def confirm_cancelled(self, lease: Lease) -> Job:
        """Finish as cancelled."""

    @abstractmethod
    def retry(self, lease: Lease, error: JobError) -> Job:
        """End this attempt early: queue the job again.

        Fails it with ``error`` if it was started too often in a row without finishing a cell.
        """

    @abstractmethod
    def release(self, lease: Lease) -> Job:
        """Give the job back in an orderly stop: queue it again, at no cost of an attempt."""

    @abstractmethod
    def beat(self, owner: str, counted: Mapping[tuple[str, str, str], float] | None = None) -> None:
        """Show that a dispatcher lives, and add what it has counted (``counters.py``)."""

    @abstractmethod
    def retire(self, owner: str) -> None:
        """Forget a dispatcher that stops."""


def _raise_lost(lost: Collection[Lease]) -> None:
    for lease in lost:
        raise LeaseLost(f"attempt {lease.attempt} no longer holds job {lease.job_id}")


class RetentionStore(ABC):
    """What is kept for how long. Each call does one small batch; called until one finds nothing to do."""

    @abstractmethod
    def prunable(self, *, seconds: float, statuses: Collection[Status] = TERMINAL) -> Mapping[Status, int]:
        """How many jobs, by status, ended at least so long ago."""

    @abstractmethod
    def prune(self, *, seconds: float, statuses: Collection[Status] = TERMINAL, limit: int = 100) -> int:
        """Remove jobs that ended at least so long ago, with all that belongs to them; how many."""

    @abstractmethod
    def thin(self, *, seconds: float, limit: int = 100) -> int:
        """Of jobs that ended so long ago keep what is still asked for: status events, reports, cells of dead ones.

        How many jobs were thinned.
        """

    @abstractmethod
    def prune_datasets(self, *, seconds: float, limit: int = 10) -> int:
        """Remove datasets that neither an upload nor a job has used for so long and a day; how many."""

    @abstractmethod
    def drop_orphans(self) -> int:
        """Remove pieces of content that belong to no dataset, of broken uploads and removed datasets; how many."""

    @abstractmethod
    def forget_keys(self) -> int:
        """Remove the idempotency keys of deleted jobs that nobody sends any more; how many."""


class Store(JobStore, LeaseStore, RetentionStore, ABC):
    """All of it in one."""

# ruff: noqa: D102  (the interface documents the methods)
"""The API's half of the store, in SQL."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import get_args

from sqlalchemy import Connection, RowMapping, and_, func, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from featurespeed.contract import TERMINAL, Job, JobPage, JobRequest, Kind, Status
from featurespeed_service.store.database import Database
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_service.store.errors import IdempotencyConflict, JobNotFound, KeyOfDeletedJob, WrongStatus
from featurespeed_service.store.interface import JobStore
from featurespeed_service.store.migrating import current
from featurespeed_service.store.quota import check_quota, lock_submissions
from featurespeed_service.store.records import DEAD, Event, Result, Statistics
from featurespeed_service.store.retention import delete_jobs
from featurespeed_service.store.rows import LISTED, find, from_cursor, insert_job, move, new_id, to_cursor, to_job
from featurespeed_service.store.schema import LOCAL_TENANT, cells, dispatchers, events, idempotency_keys, jobs
from featurespeed_service.store.statistics import statistics

JOBS_PER_QUERY = 500
PAGE_BYTES = 4 * 2**20
"""Requests in one page of a listing: it ends before them, unless the first job alone has more."""


class SqlJobStore(JobStore):
    """JobStore over a Database; ``tenant`` is the one whose jobs it shows, ``None`` for those of all."""

    def __init__(self, database: Database, tenant: str | None = None, max_active_jobs: int | None = None) -> None:
        self._database = database
        self._tenant = tenant
        self._max_active_jobs = max_active_jobs

    def of_tenant(self, tenant: str, max_active_jobs: int | None = None) -> JobStore:
        return SqlJobStore(self._database, tenant, max_active_jobs)

    @property
    def datasets(self) -> DatasetStore:
        return DatasetStore(self._database, self._tenant)

    @property
    def _submitter(self) -> str:
        return self._tenant or LOCAL_TENANT

    def _find(self, connection: Connection, job_id: str, *, lock: bool = False) -> RowMapping:
        return find(connection, job_id, tenant=self._tenant, lock=lock)

    def revision(self) -> str | None:
        with self._database.reading() as connection:
            return current(connection)

    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> Job:
        with self._database.writing() as connection:
            self._lock_quota(connection)
            job_id = new_id()
            # before the quota: a job that is there already needs no place
            if idempotency_key is None or self._take_key(connection, request, idempotency_key, job_id):
                self._check_quota(connection)
                now = self._database.clock()
                return insert_job(connection, request, now, tenant=self._submitter, job_id=job_id)
            known = self._submitted(connection, request, idempotency_key)
        return known or self.submit(request, idempotency_key)  # the key was forgotten between the two looks at it

    def _take_key(self, connection: Connection, request: JobRequest, key: str, job_id: str) -> bool:
        """Whether the key is new; else, if it is on its way in another transaction, that one has ended."""
        make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        values = {"tenant": self._submitter, "key": key, "request_sha256": request.sha256, "job_id": job_id}
        taken = make(idempotency_keys).on_conflict_do_nothing().returning(idempotency_keys.c.job_id)
        return connection.execute(taken, values).one_or_none() is not None

    def _submitted(self, connection: Connection, request: JobRequest, key: str) -> Job | None:
        same = (idempotency_keys.c.tenant == self._submitter, idempotency_keys.c.key == key)
        row = connection.execute(select(idempotency_keys).where(*same)).mappings().one_or_none()
        if row is None:
            return None
        if row["request_sha256"] != request.sha256:
            raise IdempotencyConflict(f"the idempotency key {key!r} was used for another request")
        try:
            return to_job(self._find(connection, row["job_id"]), request)
        except JobNotFound:
            raise KeyOfDeletedJob(
                f"the job of the idempotency key {key!r} was deleted; a new job needs a new key"
            ) from None

    def _lock_quota(self, connection: Connection) -> None:
        """Before a row is locked: all that submit under a quota take their locks in this order."""
        if self._max_active_jobs is not None:
            lock_submissions(connection, self._submitter)

    def _check_quota(self, connection: Connection) -> None:
        if self._max_active_jobs is not None:
            check_quota(connection, self._submitter, self._max_active_jobs)

    def resubmit(self, job_id: str) -> Job:
        with self._database.writing() as connection:
            self._lock_quota(connection)
            row = self._find(connection, job_id, lock=True)
            again = select(*LISTED).where(jobs.c.retry_of == job_id)
            if known := connection.execute(again).mappings().one_or_none():
                return to_job(known)
            job = to_job(row)
            if job.status not in DEAD:
                raise WrongStatus(
                    job, f"job {job_id} is {job.status}; only a job that failed or was cancelled is retried"
                )
            self._check_quota(connection)
            done = connection.execute(select(func.count()).where(cells.c.job_id == job_id)).scalar_one()
            now, tenant = self._database.clock(), row["tenant"]
            new = insert_job(connection, job.request, now, tenant=tenant, retry_of=job_id, done=done)
            taken = select(literal(new.id), cells.c.key, cells.c.cell).where(cells.c.job_id == job_id)
            connection.execute(insert(cells).from_select(["job_id", "key", "cell"], taken))
            return new

    def get(self, job_id: str) -> Job:
        with self._database.reading() as connection:
            return to_job(self._find(connection, job_id))

    def page(
        self, *, status: Status | None = None, kind: Kind | None = None, cursor: str | None = None, limit: int = 50
    ) -> JobPage:
        newest = (jobs.c.created_at.desc(), jobs.c.id.desc())
        query = select(jobs.c.created_at, jobs.c.id, func.length(jobs.c.request)).order_by(*newest).limit(limit + 1)
        if self._tenant is not None:
            query = query.where(jobs.c.tenant == self._tenant)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if cursor is not None:
            created_at, job_id = from_cursor(cursor)
            query = query.where(
                or_(jobs.c.created_at < created_at, and_(jobs.c.created_at == created_at, jobs.c.id < job_id))
            )
        with self._database.reading() as connection:
            places = connection.execute(query).all()
            shown = places[: _fitting([length for _, _, length in places[:limit]])]
            these = select(*LISTED).where(jobs.c.id.in_([place.id for place in shown])).order_by(*newest)
            rows = connection.execute(these).mappings().all() if shown else ()
        more = len(places) > len(shown)
        return JobPage(jobs=tuple(to_job(row) for row in rows), next_cursor=to_cursor(*shown[-1][:2]) if more else None)

    def result(self, job_id: str) -> Result:
        with self._database.reading() as connection:
            job = to_job(self._find(connection, job_id))
            if job.status != "succeeded":
                raise WrongStatus(job, _why_no_result(job))
            row = connection.execute(select(jobs.c.result, jobs.c.result_sha256).where(jobs.c.id == job_id)).one()
        return Result(text=row.result, sha256=row.result_sha256)

    def events(self, job_id: str, after: int = 0) -> Sequence[Event]:
        query = select(events).where(events.c.job_id == job_id, events.c.seq > after).order_by(events.c.seq)
        if self._tenant is not None:
            query = query.join(jobs).where(jobs.c.tenant == self._tenant)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [Event(seq=row["seq"], type=row["type"], data=row["data"]) for row in rows]

    def newest_events(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        # a query for each row, but in the index: the database reads one entry a job, however many events there are
        newest = select(func.max(events.c.seq)).where(events.c.job_id == jobs.c.id).correlate(jobs).scalar_subquery()
        found: dict[str, int] = {}
        with self._database.reading() as connection:
            for batch in _batches(job_ids):
                rows = connection.execute(select(jobs.c.id, newest.label("newest")).where(jobs.c.id.in_(batch)))
                found |= {row.id: row.newest or 0 for row in rows}
        return found

    def statistics(self, lease_seconds: float) -> Statistics:
        return statistics(self._database, lease_seconds)

    def cancel(self, job_id: str) -> Job:
        with self._database.writing() as connection:
            row = self._find(connection, job_id, lock=True)
            if row["status"] == "queued":
                move(connection, row, "cancelled", self._database.clock(), cancel_requested=True)
            elif row["status"] == "running":
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
            return to_job(self._find(connection, job_id))

    def delete(self, job_id: str) -> None:
        with self._database.writing() as connection:
            job = to_job(self._find(connection, job_id, lock=True))
            if job.status not in TERMINAL:
                raise WrongStatus(job, f"job {job_id} is {job.status}; cancel it, and delete it when it has ended")
            delete_jobs(connection, [job_id], self._database.clock())

    def counts(self) -> Mapping[Status, int]:
        query = select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)
        if self._tenant is not None:
            query = query.where(jobs.c.tenant == self._tenant)
        with self._database.reading() as connection:
            found = {row.status: row.number for row in connection.execute(query)}
        return {status: found.get(status, 0) for status in get_args(Status)}

    def last_heartbeat(self) -> float | None:
        with self._database.reading() as connection:
            beat_at = connection.execute(select(func.max(dispatchers.c.beat_at))).scalar()
        return None if beat_at is None else (self._database.clock() - beat_at) / 1e6


def _why_no_result(job: Job) -> str:
    if job.error is not None:
        return f"job {job.id} failed: {job.error.detail}"
    return f"job {job.id} is {job.status}; only a job that succeeded has a result"


def _fitting(lengths: Sequence[int]) -> int:
    """How many requests of these lengths, from the first, make a page; one at least."""
    return max(1, bisect_right(list(accumulate(lengths)), PAGE_BYTES))


def _batches(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(job_ids), JOBS_PER_QUERY):
        yield job_ids[start : start + JOBS_PER_QUERY]

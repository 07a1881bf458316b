# ruff: noqa: D102  (the interface documents the methods)
"""The dispatcher's half of the store, in SQL: every write of a running job goes through its fence."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from featurespeed.contract import Job, JobError, Status
from featurespeed_service.job_errors import ATTEMPTS_EXHAUSTED
from featurespeed_service.settings import DAY_SECONDS
from featurespeed_service.store.counters import Counted, add
from featurespeed_service.store.database import Database
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_service.store.errors import JobNotFound, LeaseLost
from featurespeed_service.store.interface import ClaimOrder, LeaseStore
from featurespeed_service.store.records import Claim, Lease, News
from featurespeed_service.store.rows import LISTED, emit, find, move
from featurespeed_service.store.schema import cells, dispatchers, events, jobs

FORGET_DISPATCHER = DAY_SECONDS * 1_000_000
"""Microseconds without a heartbeat after which a dispatcher that did not take its leave is gone for good."""


def _expired(now: int) -> ColumnElement[bool]:
    return and_(jobs.c.status == "running", jobs.c.lease_until < now)


def _waiting_tenants() -> Select[Any]:
    """The tenants with queued jobs: one step in the index for each, however many jobs they have."""
    first = select(func.min(jobs.c.tenant).label("tenant")).where(jobs.c.status == "queued").cte(recursive=True)
    after = select(func.min(jobs.c.tenant)).where(jobs.c.status == "queued", jobs.c.tenant > first.c.tenant)
    found = first.union_all(select(after.scalar_subquery()).where(first.c.tenant.is_not(None)))
    return select(found.c.tenant).where(found.c.tenant.is_not(None))


WAITING_TENANTS = _waiting_tenants()


class SqlLeaseStore(LeaseStore):
    """LeaseStore over a Database."""

    def __init__(self, database: Database, lease_seconds: float = 15.0, max_attempts: int = 5) -> None:
        self._database = database
        self._lease = round(lease_seconds * 1e6)
        self._max_attempts = max_attempts

    def claim(self, owner: str, order: ClaimOrder | None = None) -> Claim | None:
        for place in self._places(order):
            if self._candidate(place) is None:  # the usual case of an idle dispatcher: no lock is taken
                continue
            with self._database.writing() as connection:
                while (row := self._candidate(place, connection)) is not None:
                    if claim := self._claim_row(connection, row, owner):
                        return claim
        return None

    def _places(self, order: ClaimOrder | None) -> list[list[ColumnElement[bool]]]:
        """Where to look for a job, one after the other."""
        if order is None:
            return [[]]
        with self._database.reading() as connection:
            waiting: set[str] = set(connection.execute(WAITING_TENANTS).scalars())
            expired = select(jobs.c.tenant).where(_expired(self._database.clock()))
            waiting.update(connection.execute(expired).scalars())
        return [
            [jobs.c.tenant == tenant] + ([] if most_cells is None else [jobs.c.cells_total <= most_cells])
            for tenant, most_cells in order(waiting)
        ]

    def _candidate(
        self, place: Sequence[ColumnElement[bool]], connection: Connection | None = None
    ) -> RowMapping | None:
        if connection is None:
            with self._database.reading() as reading:
                return self._candidate(place, reading)
        query = (
            select(*LISTED)
            .where(or_(jobs.c.status == "queued", _expired(self._database.clock())), *place)
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        return connection.execute(query).mappings().one_or_none()

    def _claim_row(self, connection: Connection, row: RowMapping, owner: str) -> Claim | None:
        """The claim; ``None`` if the job has come to its end instead."""
        now = self._database.clock()
        if row["cancel_requested"]:
            move(connection, row, "cancelled", now)
            return None
        if row["status"] == "running":  # its dispatcher died
            if self._is_exhausted(row):
                detail = f"the job was started {_starts(row)}, and its dispatcher died each time"
                move(connection, row, "failed", now, error_type=ATTEMPTS_EXHAUSTED, error_detail=detail)
                return None
            move(connection, row, "queued", now)
            row = find(connection, row["id"])
        attempt = row["attempt"] + 1
        started_at = row["started_at"] or now
        values = {
            "attempt": attempt,
            "fruitless_starts": row["fruitless_starts"] + 1,
            "owner": owner,
            "lease_until": now + self._lease,
            "started_at": started_at,
        }
        job = move(connection, row, "running", now, **values)
        assert job is not None, "the row is locked"
        found = connection.execute(select(cells.c.key, cells.c.cell).where(cells.c.job_id == job.id))
        kept = {cell.key: cell.cell for cell in found}
        return Claim(lease=Lease(job.id, attempt), job=job, cells=kept, tenant=row["tenant"])

    def _is_exhausted(self, row: RowMapping) -> bool:
        return bool(row["fruitless_starts"] >= self._max_attempts)

    def datasets_of(self, tenant: str) -> DatasetStore:
        return DatasetStore(self._database, tenant)

    def renew_all(self, leases: Collection[Lease]) -> Collection[Lease]:
        with self._database.writing() as connection:
            until = self._database.clock() + self._lease
            return [lease for lease in _in_order(leases) if not _update(connection, lease, lease_until=until)]

    def stop_requests(self, leases: Collection[Lease]) -> Mapping[Lease, Literal["cancel", "lost"]]:
        if not leases:
            return {}
        query = select(jobs.c.id, jobs.c.attempt, jobs.c.status, jobs.c.cancel_requested)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(jobs.c.id.in_([lease.job_id for lease in leases]))).all()
        held = {Lease(row.id, row.attempt): row.cancel_requested for row in rows if row.status == "running"}
        found: dict[Lease, Literal["cancel", "lost"]] = {}
        for lease in leases:
            if lease not in held:
                found[lease] = "lost"
            elif held[lease]:
                found[lease] = "cancel"
        return found

    def record_all(self, news: Mapping[Lease, News]) -> Collection[Lease]:
        with self._database.writing() as connection:
            return [lease for lease in _in_order(news) if not _record(connection, lease, news[lease])]

    def succeed(self, lease: Lease, report: str) -> Job:
        sha256 = hashlib.sha256(report.encode()).hexdigest()
        return self._finish(lease, "succeeded", result=report, result_sha256=sha256, fraction=1.0, message="done")

    def fail(self, lease: Lease, error: JobError) -> Job:
        return self._finish(lease, "failed", error_type=error.type, error_detail=error.detail)

    def confirm_cancelled(self, lease: Lease) -> Job:
        return self._finish(lease, "cancelled")

    def retry(self, lease: Lease, error: JobError) -> Job:
        with self._database.writing() as connection:
            row = self._held(connection, lease)
            if not self._is_exhausted(row):
                return self._move(connection, lease, row, "queued")
            detail = f"{error.detail}; the job was started {_starts(row)}"
            return self._move(connection, lease, row, "failed", error_type=error.type, error_detail=detail)

    def release(self, lease: Lease) -> Job:
        starts = jobs.c.fruitless_starts
        return self._finish(lease, "queued", fruitless_starts=case((starts > 0, starts - 1), else_=0))

    def beat(self, owner: str, counted: Counted | None = None) -> None:
        now = self._database.clock()
        with self._database.writing() as connection:
            add(connection, counted or {})
            changed = connection.execute(update(dispatchers).where(dispatchers.c.id == owner).values(beat_at=now))
            if changed.rowcount == 0:
                connection.execute(delete(dispatchers).where(dispatchers.c.beat_at < now - FORGET_DISPATCHER))
                connection.execute(insert(dispatchers).values(id=owner, beat_at=now))

    def retire(self, owner: str) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(dispatchers).where(dispatchers.c.id == owner))

    def _finish(self, lease: Lease, to: Status, **values: Any) -> Job:
        with self._database.writing() as connection:
            return self._move(connection, lease, self._held(connection, lease), to, **values)

    def _held(self, connection: Connection, lease: Lease) -> RowMapping:
        try:
            row = find(connection, lease.job_id, lock=True)
        except JobNotFound:
            raise LeaseLost(f"job {lease.job_id} is gone") from None
        if row["status"] != "running" or row["attempt"] != lease.attempt:
            raise _lost(lease)
        return row

    def _move(self, connection: Connection, lease: Lease, row: RowMapping, to: Status, **values: Any) -> Job:
        job = move(connection, row, to, self._database.clock(), *_fence(lease), **values)
        if job is None:
            raise _lost(lease)
        return job


def _fence(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.id == lease.job_id, jobs.c.attempt == lease.attempt, jobs.c.status == "running"


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"attempt {lease.attempt} no longer holds job {lease.job_id}")


def _starts(row: RowMapping) -> str:
    starts = row["fruitless_starts"]
    return f"{'once' if starts == 1 else f'{starts} times in a row'} without finishing a cell"


def _in_order(leases: Iterable[Lease]) -> list[Lease]:
    """As every transaction that locks several jobs takes them, so that no two wait for each other."""
    return sorted(leases, key=lambda lease: lease.job_id)


def _update(connection: Connection, lease: Lease, **values: Any) -> bool:
    """Write a running job; whether the lease still holds."""
    return connection.execute(update(jobs).where(*_fence(lease)).values(**values)).rowcount > 0


def _record(connection: Connection, lease: Lease, news: News) -> bool:
    told = news.progress.model_dump(include={"cells_done", "fraction", "message"})
    if not _update(connection, lease, **told, **({"fruitless_starts": 0} if news.cells else {})):
        return False
    if news.cells:
        _insert_cells(connection, lease.job_id, news.cells)
    if measurements := _new_measurements(connection, lease.job_id, news):
        emit(connection, lease.job_id, "measurement", *measurements)
    # the newest progress tells all: a long job does not fill the table with old ones
    newest = emit(connection, lease.job_id, "progress", news.progress.model_dump_json())
    older = events.c.job_id == lease.job_id, events.c.type == "progress", events.c.seq < newest
    connection.execute(delete(events).where(*older))
    return True


def _new_measurements(connection: Connection, job_id: str, news: News) -> Sequence[str]:
    if not (news.in_doubt and news.measurements):
        return news.measurements
    told = select(events.c.data).where(events.c.job_id == job_id, events.c.type == "measurement")
    known = set(connection.execute(told).scalars())
    return [measurement for measurement in news.measurements if measurement not in known]


def _insert_cells(connection: Connection, job_id: str, found: Mapping[str, str]) -> None:
    # some may be there: their transaction was committed, but the database was gone before it could say so
    query = select(cells.c.key).where(cells.c.job_id == job_id, cells.c.key.in_(list(found)))
    known = set(connection.execute(query).scalars())
    new = [{"job_id": job_id, "key": key, "cell": cell} for key, cell in found.items() if key not in known]
    if new:
        connection.execute(insert(cells), new)

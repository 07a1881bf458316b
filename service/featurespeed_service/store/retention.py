# ruff: noqa: D102  (the interface documents the methods)
"""What is kept and for how long: everything here works in batches, each a short transaction of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, func, or_, select, update

from featurespeed.contract import TERMINAL, Status
from featurespeed_service.store.database import Database
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_service.store.interface import RetentionStore
from featurespeed_service.store.schema import cells, events, idempotency_keys, jobs

KEY_SECONDS = 24 * 3600
"""How long an idempotency key outlives the end of its job, at least: longer than any client goes on sending."""


def delete_jobs(connection: Connection, ids: Sequence[str], now: int) -> None:
    """Remove finished jobs, locked by this transaction, and all that is theirs but keys that may be sent again."""
    for table in (cells, events):
        connection.execute(delete(table).where(table.c.job_id.in_(ids)))
    end = select(jobs.c.finished_at + KEY_SECONDS * 1_000_000).where(jobs.c.id == idempotency_keys.c.job_id)
    of_these = idempotency_keys.c.job_id.in_(ids)
    connection.execute(update(idempotency_keys).where(of_these).values(forget_at=end.scalar_subquery()))
    connection.execute(delete(idempotency_keys).where(of_these, idempotency_keys.c.forget_at <= now))
    connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))


class SqlRetention(RetentionStore):
    """RetentionStore over a Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prunable(self, *, seconds: float, statuses: Collection[Status] = TERMINAL) -> Mapping[Status, int]:
        old = self._ended(seconds, statuses)
        query = select(jobs.c.status, func.count().label("number")).where(*old).group_by(jobs.c.status)
        with self._database.reading() as connection:
            return {row.status: row.number for row in connection.execute(query)}

    def prune(self, *, seconds: float, statuses: Collection[Status] = TERMINAL, limit: int = 100) -> int:
        oldest = select(jobs.c.id).where(*self._ended(seconds, statuses)).order_by(jobs.c.finished_at).limit(limit)
        with self._database.writing() as connection:
            # two that prune at once take different jobs, and neither waits for a job that somebody is reading
            ids = connection.execute(oldest.with_for_update(skip_locked=True)).scalars().all()
            if ids:
                delete_jobs(connection, ids, self._database.clock())
        return len(ids)

    def thin(self, *, seconds: float, limit: int = 100) -> int:
        of_job = events.c.job_id == jobs.c.id
        told = exists().where(of_job, events.c.type != "status")
        useless = exists().where(cells.c.job_id == jobs.c.id, jobs.c.status == "succeeded")
        old = (*self._ended(seconds, TERMINAL), or_(told, useless))
        with self._database.writing() as connection:
            found = connection.execute(select(jobs.c.id, jobs.c.status).where(*old).limit(limit)).all()
            ids = [row.id for row in found]
            if ids:
                connection.execute(delete(events).where(events.c.job_id.in_(ids), events.c.type != "status"))
                # those of dead jobs stay: a retry takes them over
                succeeded = [row.id for row in found if row.status == "succeeded"]
                connection.execute(delete(cells).where(cells.c.job_id.in_(succeeded)))
        return len(ids)

    def prune_datasets(self, *, seconds: float, limit: int = 10) -> int:
        stored = DatasetStore(self._database)
        return sum(stored.drop(found) for found in stored.unused(seconds, limit))

    def drop_orphans(self) -> int:
        return DatasetStore(self._database).drop_orphans()

    def forget_keys(self) -> int:
        with self._database.writing() as connection:
            old = idempotency_keys.c.forget_at <= self._database.clock()
            return connection.execute(delete(idempotency_keys).where(old)).rowcount

    def _ended(self, seconds: float, statuses: Collection[Status]) -> tuple[ColumnElement[bool], ...]:
        before = self._database.clock() - round(seconds * 1e6)
        return jobs.c.finished_at <= before, jobs.c.status.in_(TERMINAL & set(statuses))

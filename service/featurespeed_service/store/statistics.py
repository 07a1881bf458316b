"""How the service fares: a few queries, each answered by an index or a small table."""

from __future__ import annotations

from typing import get_args

from sqlalchemy import func, select

from featurespeed.contract import Status
from featurespeed_service.store import counters
from featurespeed_service.store.database import Database
from featurespeed_service.store.records import Statistics
from featurespeed_service.store.schema import datasets, dispatchers, jobs


def statistics(database: Database, lease_seconds: float) -> Statistics:
    """The statistics of all tenants, from one transaction."""
    now = database.clock()
    by_status = select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)
    queued = select(func.min(jobs.c.created_at)).where(jobs.c.status == "queued")
    leased = select(func.min(jobs.c.lease_until)).where(jobs.c.status == "running")
    with database.reading() as connection:
        found = {row.status: row.number for row in connection.execute(by_status)}
        oldest_queued = connection.execute(queued).scalar()
        lease_until = connection.execute(leased).scalar()
        beat_at = connection.execute(select(func.max(dispatchers.c.beat_at))).scalar()
        size = connection.execute(select(func.sum(datasets.c.size))).scalar()
        counted = counters.read(connection)
    return Statistics(
        jobs={status: found.get(status, 0) for status in get_args(Status)},
        oldest_queued_seconds=0.0 if oldest_queued is None else (now - oldest_queued) / 1e6,
        lease_age_seconds=0.0 if lease_until is None else lease_seconds - (lease_until - now) / 1e6,
        heartbeat_age_seconds=None if beat_at is None else (now - beat_at) / 1e6,
        dataset_bytes=int(size or 0),
        counted=counted,
    )

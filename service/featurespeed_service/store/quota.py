"""How many jobs of a tenant may be under way, counted where they are submitted."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from featurespeed_service.store.errors import QuotaExceeded
from featurespeed_service.store.schema import jobs

LOCK_CLASS = 0x71756F74
"""A number of our own, that keeps these advisory locks of PostgreSQL apart from others."""


def lock_submissions(connection: Connection, tenant: str) -> None:
    """Let no other transaction submit for the tenant under a quota until this one ends."""
    if connection.dialect.name == "postgresql":  # SQLite: BEGIN IMMEDIATE has locked the file
        connection.execute(select(func.pg_advisory_xact_lock(LOCK_CLASS, func.hashtext(tenant))))


def check_quota(connection: Connection, tenant: str, limit: int) -> None:
    """Raise QuotaExceeded if ``limit`` jobs of the tenant are queued or running."""
    under_way = (jobs.c.tenant == tenant, jobs.c.status.in_(("queued", "running")))
    active: int = connection.execute(select(func.count()).select_from(jobs).where(*under_way)).scalar_one()
    if active >= limit:
        raise QuotaExceeded(active, limit)

"""The tables of version 0.1, made before migrations were: what is there already is adopted.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make what is missing. A table of cells from before they had keys goes: unfinished jobs begin again."""
    found = sa.inspect(op.get_bind())
    if found.has_table("cells") and "key" not in {column["name"] for column in found.get_columns("cells")}:
        op.drop_table("cells")
    tables = sa.MetaData()
    _describe(tables)
    tables.create_all(op.get_bind())


def _describe(tables: sa.MetaData) -> None:
    sa.Table(
        "jobs",
        tables,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("releases", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("cells_done", sa.Integer, nullable=False),
        sa.Column("cells_total", sa.Integer, nullable=False),
        sa.Column("fraction", sa.Float, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("error_type", sa.String(128)),
        sa.Column("error_detail", sa.Text),
        sa.Column("result", sa.Text),
        sa.Column("result_sha256", sa.String(64)),
        sa.Index("jobs_newest", "created_at", "id"),
        sa.Index("jobs_by_status", "status", "created_at"),
    )
    sa.Table(
        "cells",
        tables,
        sa.Column("job_id", sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("cell", sa.Text, nullable=False),
    )
    sa.Table(
        "events",
        tables,
        sa.Column("job_id", sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    sa.Table(
        "idempotency_keys",
        tables,
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False, index=True),
    )
    sa.Table(
        "dispatchers",
        tables,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("beat_at", sa.BigInteger, nullable=False),
    )

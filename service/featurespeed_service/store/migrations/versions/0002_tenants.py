"""Tenants and their API keys; datasets move into the database; jobs that repeat others, and keys that outlive theirs.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

LOCAL = "local"


def upgrade() -> None:
    """What is there belongs to the tenant ``local``."""
    op.add_column("jobs", sa.Column("tenant", sa.String(64), nullable=False, server_default=LOCAL))
    op.create_index("jobs_waiting", "jobs", ["status", "tenant", "created_at", "cells_total"])
    op.add_column("jobs", sa.Column("fruitless_starts", sa.Integer, nullable=False, server_default="0"))
    op.drop_column("jobs", "releases")
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "status", "created_at"])
    _key_idempotency_keys_by_tenant()
    op.add_column("jobs", sa.Column("retry_of", sa.String(64)))
    op.create_index("jobs_by_retry_of", "jobs", ["retry_of"], unique=True)
    op.create_index("jobs_by_end", "jobs", ["finished_at"])
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("label", sa.String(128), primary_key=True),
        sa.Column("bound", sa.String(16), primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("max_active_jobs", sa.Integer),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "datasets",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True, server_default="dataset"),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("upload", sa.String(32), nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "dataset_chunks",
        sa.Column("upload", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def _key_idempotency_keys_by_tenant() -> None:
    op.drop_index("ix_idempotency_keys_job_id", "idempotency_keys")
    op.rename_table("idempotency_keys", "old_idempotency_keys")
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.String(64), nullable=False, server_default=LOCAL),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("forget_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("tenant", "key", name="idempotency_keys_by_tenant"),
    )
    op.execute(
        "INSERT INTO idempotency_keys (key, request_sha256, job_id) "
        "SELECT key, request_sha256, job_id FROM old_idempotency_keys"
    )
    op.drop_table("old_idempotency_keys")
    op.create_index("ix_idempotency_keys_job_id", "idempotency_keys", ["job_id"])

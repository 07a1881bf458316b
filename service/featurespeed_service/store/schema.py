"""The tables. Times are whole microseconds since 1970 (UTC): every database stores and compares them alike."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),  # starts so far; with the id, the fence of a running job
    Column("releases", Integer, nullable=False, default=0),  # starts given back in an orderly stop: they cost nothing
    Column("owner", String(64)),
    Column("lease_until", BigInteger),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("cells_done", Integer, nullable=False, default=0),
    Column("cells_total", Integer, nullable=False),
    Column("fraction", Float, nullable=False, default=0.0),
    Column("message", Text, nullable=False, default=""),
    Column("error_type", String(128)),
    Column("error_detail", Text),
    Column("result", Text),
    Column("result_sha256", String(64)),
    Index("jobs_newest", "created_at", "id"),
    Index("jobs_by_status", "status", "created_at"),
)

cells = Table(
    "cells",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("key", String(64), primary_key=True),  # the cell's name, as the engine gives it
    Column("cell", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("type", String(32), nullable=False),
    Column("data", Text, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("beat_at", BigInteger, nullable=False),
)

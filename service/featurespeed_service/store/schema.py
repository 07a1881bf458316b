"""The tables. Times are whole microseconds since 1970 (UTC): every database stores and compares them alike.

A change here needs a migration in ``migrations/versions``; a test holds the two together.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

LOCAL_TENANT = "local"
"""To whom everything belongs where no keys are asked for."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False, server_default=LOCAL_TENANT),
    Column("kind", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),  # starts so far; with the id, the fence of a running job
    # starts in a row in which no cell was finished; one that was given back in an orderly stop does not count
    Column("fruitless_starts", Integer, nullable=False, server_default="0"),
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
    Column("retry_of", String(64)),  # the failed or cancelled job that this one repeats; may be gone
    Index("jobs_newest", "created_at", "id"),
    Index("jobs_by_status", "status", "created_at"),
    Index("jobs_waiting", "status", "tenant", "created_at", "cells_total"),
    Index("jobs_by_tenant", "tenant", "status", "created_at"),
    Index("jobs_by_end", "finished_at"),
    Index("jobs_by_retry_of", "retry_of", unique=True),
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
    Column("tenant", String(64), primary_key=True, server_default=LOCAL_TENANT),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("job_id", String(64), nullable=False, index=True),  # the job may be gone: its key outlives it for a while
    Column("forget_at", BigInteger),  # set once the job is gone
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("beat_at", BigInteger, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("label", String(128), primary_key=True),
    Column("bound", String(16), primary_key=True),  # of a histogram's bucket
    Column("value", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),  # the public part of the key
    Column("name", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),  # of the secret part, which is kept nowhere
    Column("tenant", String(64), nullable=False),
    Column("scopes", Text, nullable=False),  # separated by spaces
    Column("max_active_jobs", Integer),
    Column("requests_per_minute", Integer),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

datasets = Table(
    "datasets",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True, server_default="dataset"),  # or a checkpoint
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),  # bytes
    Column("facts", Text, nullable=False),  # what its checks found: JSON
    Column("upload", String(32), nullable=False, unique=True),  # whose chunks are its content
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),  # by an upload or a job, last; to the day
)

dataset_chunks = Table(
    "dataset_chunks",
    metadata,
    Column("upload", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

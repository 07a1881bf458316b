"""Which errors of a driver mean that the database is away, and how long is waited before one of them comes."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from featurespeed_service.store.errors import StoreFull, StoreUnavailable

BUSY_TIMEOUT_SECONDS = 15.0
"""How long a transaction waits for SQLite's lock."""
POOL_TIMEOUT_SECONDS = 5.0
"""How long a thread waits for one of the pool's connections."""

POSTGRESQL_TIMEOUTS = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=15s -c lock_timeout=10s -c idle_in_transaction_session_timeout=20s",
}
"""What libpq is told, unless the URL says otherwise, so that no request hangs: neither on a host that does not answer
nor on a lock, and a process that was stopped in the middle of a transaction loses its locks."""

DISK_FULL = "53100"
READ_ONLY = "25006"
"""PostgreSQL's SQLSTATEs; a server that was demoted in a failover is read-only."""


def outage(error: SQLAlchemyError) -> StoreUnavailable | None:
    """What a store raises for an error of SQLAlchemy; ``None`` if the fault is not the database's being away."""
    if isinstance(error, PoolTimeout):
        return StoreUnavailable("no connection to the database was free in time")
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig
    text = str(cause).partition("\n")[0]
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause, text)
    if getattr(cause, "sqlstate", None) == DISK_FULL:
        return StoreFull(text)
    is_read_only = getattr(cause, "sqlstate", None) == READ_ONLY
    away = error.connection_invalidated or is_read_only or isinstance(error, OperationalError | InterfaceError)
    return StoreUnavailable(text) if away else None


def _of_sqlite(cause: sqlite3.Error, text: str) -> StoreUnavailable | None:
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the extension
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(text)
    # SQLITE_ERROR is a mistake in a statement, though its class is the same as that of a locked file
    away = isinstance(cause, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR
    return StoreUnavailable(text) if away else None

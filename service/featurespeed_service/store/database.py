"""One way to reach a database, whatever its kind: transactions that read, transactions that write."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url

from featurespeed_service.store.migrating import current, upgrade

Clock = Callable[[], int]
"""The time in microseconds since 1970."""

BUSY_TIMEOUT_SECONDS = 20.0
POOL_SIZE = 20
"""Connections that a process keeps to PostgreSQL; ten more come and go."""
_WRITES = "featurespeed_writes"


def system_clock() -> int:
    """The machine's time."""
    return time.time_ns() // 1000


class Database:
    """An engine whose schema is up to date, and a clock.

    Raises ``sqlalchemy.exc.SQLAlchemyError`` (or ImportError, for a driver not installed) if it cannot be reached, and
    DatabaseTooNew.
    """

    def __init__(self, url: str, clock: Clock = system_clock) -> None:
        self.clock = clock
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        try:
            with self.writing() as connection:
                upgrade(connection)
        except BaseException:
            self.close()
            raise

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that changes nothing."""
        return self._engine.begin()

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that may write; commits at its end, rolls back on an exception."""
        return self._writer.begin()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def revision_of(url: str) -> str | None:
    """The revision of a database's schema, ``None`` before its first migration; raises as Database does."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return None  # to connect would make the file
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            return current(connection)
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        if parsed.drivername in ("postgresql", "postgres"):  # what people write, and hosts hand out
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, pool_pre_ping=True, pool_size=POOL_SIZE)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Rollback journal: several processes share the file, and SQLite before 3.51.3 can corrupt a WAL then.
    connection.isolation_level = None  # the driver leaves BEGIN to us
    for pragma in ("journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock later would fail at once instead of waiting.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

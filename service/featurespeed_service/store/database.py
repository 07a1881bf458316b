"""One way to reach a database, whatever its kind: transactions that read, transactions that write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import SQLAlchemyError

from featurespeed_service.store.migrating import current, upgrade
from featurespeed_service.store.outages import (
    BUSY_TIMEOUT_SECONDS,
    POOL_TIMEOUT_SECONDS,
    POSTGRESQL_TIMEOUTS,
    outage,
)

log = logging.getLogger(__name__)

Clock = Callable[[], int]
"""The time in microseconds since 1970."""

POOL_SIZE = 20
"""Connections that a process keeps; ten more come and go."""
_WRITES = "featurespeed_writes"


def system_clock() -> int:
    """The machine's time."""
    return time.time_ns() // 1000


class Database:
    """An engine whose schema is up to date, and a clock.

    Raises StoreUnavailable if it cannot be reached, ``sqlalchemy.exc.SQLAlchemyError`` or ValueError for a URL that is
    none, ImportError for a driver that is not installed, and DatabaseTooNew.
    """

    def __init__(self, url: str, clock: Clock = system_clock) -> None:
        self.clock = clock
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        self._is_away: bool | None = None  # not known before it is reached for the first time
        try:
            with self.writing() as connection:
                upgrade(connection)
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> Engine:
        """For those who watch its queries."""
        return self._engine

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that changes nothing; raises StoreUnavailable, as writing does."""
        return self._transaction(self._engine)

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that may write; commits at its end, rolls back on an exception."""
        return self._transaction(self._writer)

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            if (away := outage(error)) is None:
                raise
            if self._is_away is False:
                log.warning("the database is unavailable: %s", away)
                self._is_away = True
            raise away from error
        if self._is_away:
            log.warning("the database is back")
        self._is_away = False

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
    except SQLAlchemyError as error:
        raise outage(error) or error from error
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    pool: dict[str, Any] = {"pool_size": POOL_SIZE, "pool_timeout": POOL_TIMEOUT_SECONDS}
    if parsed.get_backend_name() != "sqlite":
        if parsed.drivername in ("postgresql", "postgres"):  # what people write, and hosts hand out
            parsed = parsed.set(drivername="postgresql+psycopg")
        is_libpq = parsed.drivername.startswith("postgresql+psycopg")
        limits = {name: value for name, value in POSTGRESQL_TIMEOUTS.items() if is_libpq and name not in parsed.query}
        return create_engine(parsed, connect_args=limits, pool_pre_ping=True, **pool)
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLite needs a file, as several processes share it: sqlite:///FILE")
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False}, **pool)
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

"""The store in SQL, for SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from featurespeed_service.settings import Settings
from featurespeed_service.store.database import Clock, Database, system_clock
from featurespeed_service.store.interface import Store
from featurespeed_service.store.jobs import SqlJobStore
from featurespeed_service.store.keys import KeyStore
from featurespeed_service.store.leases import SqlLeaseStore
from featurespeed_service.store.retention import SqlRetention
from featurespeed_service.store.uploads import remove_abandoned, take_over


class SqlStore(SqlJobStore, SqlLeaseStore, SqlRetention, Store):
    """All parts over one database."""

    def __init__(self, database: Database, lease_seconds: float = 15.0, max_attempts: int = 5) -> None:
        SqlJobStore.__init__(self, database)
        SqlLeaseStore.__init__(self, database, lease_seconds, max_attempts)
        SqlRetention.__init__(self, database)
        self.keys = KeyStore(database)

    @property
    def engine(self) -> Engine:
        """For those who watch its queries."""
        return self._database.engine

    def close(self) -> None:
        """Close all connections."""
        self._database.close()


def open_store(settings: Settings, clock: Clock = system_clock) -> SqlStore:
    """The store that the settings name, its tables made. Raises as Database does, or OSError for the data directory."""
    Path(settings.datasets_dir).mkdir(parents=True, exist_ok=True)
    store = SqlStore(Database(settings.database_url, clock), settings.lease_seconds, settings.max_attempts)
    take_over(store.datasets, settings.datasets_dir)
    remove_abandoned(settings.datasets_dir)
    return store

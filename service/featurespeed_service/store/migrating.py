"""Bringing a database's schema up to date, by Alembic; also while several processes start at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x66656174
"""A number of our own, by which processes that migrate the same PostgreSQL database wait for each other."""


class DatabaseTooNew(Exception):
    """The database was migrated by a later version of this program."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


@cache
def head() -> str:
    """The revision that this program's schema is."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(connection: Connection) -> str | None:
    """The revision of a database; ``None`` before its first migration."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection) -> None:
    """Migrate to :func:`head`, in the transaction of ``connection``; raises DatabaseTooNew before any change."""
    if connection.dialect.name == "postgresql":  # SQLite: BEGIN IMMEDIATE has locked the file
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes its time
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    revision = current(connection)
    if revision == head():
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseTooNew(
            f"the database is at revision {revision}, later than this program's {head()}: use a newer featurespeed"
        )
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

"""What an operator does beside serving: a dispatcher on a cluster, and the schema of the database."""

from __future__ import annotations

import os
from pathlib import Path

from featurespeed_service.dispatch.supervisor import ALONE
from featurespeed_service.opening import DATABASE_ERRORS, CannotStart, cannot_open, opened, refuse, settings_of
from featurespeed_service.store.database import revision_of
from featurespeed_service.store.migrating import head


def run_dispatcher(database: str | None, ray_address: str | None, data_dir: Path | None) -> int:
    """Become a dispatcher, as the child of ``serve`` is one; returns only if the options are wrong."""
    try:
        settings = settings_of(database, ray_address, data_dir)
    except CannotStart as error:
        return refuse(error)
    return os.execve(ALONE[0], ALONE, settings.environment_of_child())


def upgrade_database(database: str | None, data_dir: Path | None) -> int:
    """Migrate to the newest schema, and print what was done."""
    try:
        settings = settings_of(database, None, data_dir)
        opened(settings).close()
    except CannotStart as error:
        return refuse(error)
    print(f"{head()} (up to date)")
    return 0


def print_revision(database: str | None, data_dir: Path | None) -> int:
    """Print the revision of the schema; changes nothing."""
    try:
        revision = revision_of(settings_of(database, None, data_dir).database_url)
    except CannotStart as error:
        return refuse(error)
    except DATABASE_ERRORS as error:
        return refuse(cannot_open(error))
    print(f"{revision or 'none'} ({'up to date' if revision == head() else f'this program needs {head()}'})")
    return 0

"""From options and environment to settings and an open store; whatever is in the way is told in one line."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from featurespeed_service.settings import PREFIX, Settings
from featurespeed_service.store.errors import StoreUnavailable
from featurespeed_service.store.migrating import DatabaseTooNew
from featurespeed_service.store.sql import SqlStore, open_store

BAD_INPUT = 2
"""Exit status for what an operator can put right."""

DATABASE_ERRORS = (SQLAlchemyError, StoreUnavailable, ImportError, OSError, ValueError, DatabaseTooNew)


class CannotStart(Exception):
    """Something that an operator can put right; the message is one line."""


def settings_of(database: str | None = None, ray_address: str | None = None, data_dir: Path | None = None) -> Settings:
    """The settings of the environment (``FEATURESPEED_*``), but for the options that are given."""
    given = {"database": database, "ray_address": ray_address, "data_dir": data_dir}
    try:
        settings = Settings.from_environment()
        return settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        name = f"{PREFIX}{str(fault['loc'][0]).upper()}"
        raise CannotStart(f"{name}: {fault['msg']} (got {fault['input']!r})") from None


def opened(settings: Settings) -> SqlStore:
    """The store, its schema up to date."""
    try:
        return open_store(settings)
    except DATABASE_ERRORS as error:
        raise cannot_open(error) from error


def cannot_open(error: Exception) -> CannotStart:
    """What to tell of one of DATABASE_ERRORS."""
    return CannotStart(f"cannot open the database: {str(error).splitlines()[0]}")


def refuse(why: str | CannotStart) -> int:
    """Tell on stderr, in one line, why there is no start; returns the exit status."""
    print(f"featurespeed: {why}", file=sys.stderr)
    return BAD_INPUT

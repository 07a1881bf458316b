"""What all tests share: long proofs and what they report, and databases of each kind."""

from contextlib import ExitStack

import pytest

from featurespeed_service.store.database import Database
from tests.chaos.report import Report
from tests.service.postgres import Unavailable, running


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="tests/chaos in its full length, as promised: most of an hour")


@pytest.fixture(scope="session")
def full(pytestconfig):
    """Whether the promised numbers are run, not a sample."""
    return pytestconfig.getoption("full")


@pytest.fixture(scope="session")
def report():
    """Rows of what was measured: printed as they come, and all together in the end."""
    report = Report()
    yield report
    report.end()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of this run's own."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running())
        except Unavailable as error:
            pytest.skip(f"no PostgreSQL here: {error}")
        yield server


@pytest.fixture(scope="session")
def migrated(postgres):
    """Name of a database with our tables, which others are copied from."""
    url = postgres.new_database()
    Database(url).close()
    return url.rsplit("/", 1)[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request, tmp_path):
    """A database without tables, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """One URL for every kind of database; the suite of the store runs once for each."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite3'}"
    return request.getfixturevalue("postgres").new_database(request.getfixturevalue("migrated"))

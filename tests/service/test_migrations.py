"""The schema comes from migrations alone, from wherever it starts."""

import threading
from importlib import import_module

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from featurespeed_service.store import migrating
from featurespeed_service.store.database import Database
from featurespeed_service.store.migrations.versions import __name__ as versions
from featurespeed_service.store.schema import metadata
from featurespeed_service.store.sql import SqlStore
from tests.service.specs import request

OLD = f"job_{'0' * 24}"


@pytest.fixture
def engine(empty_database_url):
    engine = sa.create_engine(empty_database_url)
    yield engine
    engine.dispose()


def test_migrations_make_the_schema(empty_database_url, engine):
    Database(empty_database_url).close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, {"compare_type": True}), metadata) == []
        assert migrating.current(connection) == migrating.head()


def before_migrations(engine, asked):
    """As version 0.1 left it: the tables of the first migration, and no word of Alembic's."""
    tables = sa.MetaData()
    import_module(f"{versions}.0001_first")._describe(tables)
    tables.create_all(engine)
    job = {"id": OLD, "kind": asked.kind, "request": asked.model_dump_json(), "created_at": 1, "message": ""}
    counts = {"attempt": 0, "releases": 0, "cells_done": 0, "cells_total": 3, "fraction": 0.0}
    key = {"key": "k", "request_sha256": asked.sha256, "job_id": OLD}
    with engine.begin() as connection:
        connection.execute(
            sa.insert(tables.tables["jobs"]).values(**job, **counts, status="queued", cancel_requested=False)
        )
        connection.execute(sa.insert(tables.tables["idempotency_keys"]).values(**key))


def test_a_database_from_before_migrations_keeps_its_jobs(empty_database_url, engine):
    asked = request(7)
    before_migrations(engine, asked)
    store = SqlStore(Database(empty_database_url))
    assert store.get(OLD).request == asked
    assert store.submit(asked, "k").id == OLD
    assert store.claim("d").job.id == OLD
    store.close()


def test_cells_of_before_they_had_keys_are_computed_again(empty_database_url, engine):
    before_migrations(engine, request(7))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE cells"))
        connection.execute(
            sa.text("CREATE TABLE cells (job_id VARCHAR(64) REFERENCES jobs (id), seed BIGINT, cell TEXT)")
        )
        connection.execute(sa.text(f"INSERT INTO cells VALUES ('{OLD}', 0, '{{}}')"))
    store = SqlStore(Database(empty_database_url))
    claim = store.claim("d")
    assert (claim.job.id, claim.cells) == (OLD, {})
    store.record(claim.lease, progress=claim.job.progress, cells={"seed 0": "{}"})
    store.close()
    again = SqlStore(Database(empty_database_url))
    again.release(claim.lease)
    assert again.claim("d").cells == {"seed 0": "{}"}  # opening it a second time drops nothing
    again.close()


def test_many_processes_may_migrate_at_once(empty_database_url, engine):
    faults = []

    def start():
        try:
            Database(empty_database_url).close()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with engine.connect() as connection:
        assert migrating.current(connection) == migrating.head()


def test_a_database_of_a_later_version_is_refused_and_left_alone(empty_database_url, engine):
    Database(empty_database_url).close()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrating.DatabaseTooNew, match="revision 9999"):
        Database(empty_database_url)
    with engine.connect() as connection:
        assert migrating.current(connection) == "9999"

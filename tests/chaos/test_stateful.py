"""The store is as its model, whatever clients, dispatchers and time do; and the proof notices if a fence is missing."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError

from featurespeed_service.store import leases
from featurespeed_service.store.database import Database
from featurespeed_service.store.schema import jobs
from tests.chaos.store_machine import StoreMachine
from tests.service.conftest import Clock

SHORT = settings(
    max_examples=25,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
FULL = settings(SHORT, max_examples=1000, stateful_step_count=50)


@pytest.fixture
def machine(database_url):
    """The machine over a database that does not wait for its disk: what a crash leaves is not what is tested here."""
    database = Database(database_url, Clock())
    database.close()  # so that all connections are new ones
    event.listen(database._engine, "connect", hurry)
    yield type("StoreMachineOver", (StoreMachine,), {"database": database})
    database.close()


def hurry(connection, _record):
    is_sqlite = type(connection).__module__.startswith("sqlite3")
    connection.execute("PRAGMA synchronous=OFF" if is_sqlite else "SET synchronous_commit=off")
    connection.commit()


def test_the_store_is_as_its_model(machine, full, report):
    chosen = FULL if full else SHORT
    run_state_machine_as_test(machine, settings=chosen)
    kind = machine.database._engine.dialect.name
    promise = f"the store is as its model ({kind})"
    report.row(promise, "0 differences", f"0 in {chosen.max_examples} runs of {chosen.stateful_step_count} steps")


def test_a_missing_fence_is_found(machine, monkeypatch):
    take_the_fence_out(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, IntegrityError)):
        run_state_machine_as_test(
            machine, settings=settings(SHORT, phases=[Phase.generate], report_multiple_bugs=False, print_blob=False)
        )


def take_the_fence_out(monkeypatch):
    """Whoever has held a job may write it while it runs, no matter in whose attempt."""
    held = leases.SqlLeaseStore._held

    def held_by_anybody(store, connection, lease):
        attempt = connection.execute(select(jobs.c.attempt).where(jobs.c.id == lease.job_id)).scalar()
        return held(store, connection, lease if attempt is None else replace(lease, attempt=attempt))

    monkeypatch.setattr(leases.SqlLeaseStore, "_held", held_by_anybody)
    monkeypatch.setattr(leases, "_fence", lambda lease: (jobs.c.id == lease.job_id, jobs.c.status == "running"))

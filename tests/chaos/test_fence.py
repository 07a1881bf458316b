"""A dispatcher that was stopped for longer than its lease, while another went on, writes nothing when it wakes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from featurespeed_service.store.database import Database
from featurespeed_service.store.schema import dispatchers, jobs
from featurespeed_service.store.sql import SqlStore
from tests.chaos.checking import events_of, violations
from tests.service.service_process import TERMINAL, ServiceProcess, wait_until

DISPATCHER = [sys.executable, "-m", "featurespeed_service.dispatch"]
ROOT = Path(__file__).parent.parent.parent
CELLS = 8
LATE_SECONDS = 10
"""How long a write that comes too late is waited for."""


def held_by(database, pid):
    """Running jobs of a dispatcher that have finished a cell and have more to do."""
    started = jobs.c.cells_done.between(1, CELLS - 2)
    query = select(jobs.c.id).where(jobs.c.owner.like(f"%-{pid}-%"), jobs.c.status == "running", started)
    with database.reading() as connection:
        return set(connection.execute(query).scalars())


def two_dispatchers_live(database):
    with database.reading() as connection:
        return connection.execute(select(func.count()).select_from(dispatchers)).scalar() == 2


def stopped_and_woken(tmp_path, database_url, number, **settings):
    """Violations in ``number`` jobs after SIGSTOP of their dispatcher, until a second one takes over, and SIGCONT."""
    database = Database(database_url)
    store = SqlStore(database)
    service = ServiceProcess(tmp_path, database=database_url, cpus=2, **settings)
    service.environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    with service:
        with service.log.open("a") as log:
            other = subprocess.Popen(DISPATCHER, env=service.environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: two_dispatchers_live(database), 180, "two dispatchers")
            stale = service.dispatcher()
            ids = [service.submit(seed, seeds=range(CELLS), steps=50) for seed in range(number)]
            held = wait_until(lambda: held_by(database, stale.pid), 120, "a job of the first dispatcher")
            stale.send_signal(signal.SIGSTOP)
            wait_until(lambda: any(store.get(job_id).attempt > 1 for job_id in held), 25, "the job is taken over")
            stale.send_signal(signal.SIGCONT)
            wait_until(lambda: all(store.get(job_id).status in TERMINAL for job_id in ids), 180, "the end")
            end = time.monotonic() + LATE_SECONDS
            while time.monotonic() < end and all(events_of(store, job_id).count("succeeded") == 1 for job_id in ids):
                time.sleep(0.2)
            return [fault for job_id in ids for fault in violations(store, job_id)]
        finally:
            other.terminate()
            other.wait(30)
            store.close()


def test_a_stopped_dispatcher_that_wakes_writes_nothing(full, report, tmp_path, database_url):
    if not full and database_url.startswith("sqlite"):
        pytest.skip("make chaos")
    number = 20 if full else 4
    found = stopped_and_woken(tmp_path, database_url, number)
    report.row("One result, SIGSTOP beyond the lease", f"0 wrong or double of {number}", len(found))
    assert found == []


def test_without_the_fence_this_is_noticed(report, tmp_path, postgres):
    found = stopped_and_woken(tmp_path, postgres.new_database(), 4, engine="tests.chaos.unfenced_stand_in")
    report.row("The same without the fence", "> 0: the check can fail", len(found))
    assert any("ended as" in fault for fault in found), found

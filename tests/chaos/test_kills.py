"""kill -9 of every part, at random and one by one: no job lost, one right result each, recovery within its bound."""

import random
import time

import psutil
import pytest

from featurespeed_service.store.database import Database
from featurespeed_service.store.sql import SqlStore
from tests.chaos.checking import part, violations
from tests.service.service_process import TERMINAL, ServiceProcess, wait_until
from tests.service.specs import request, spec

PARTS = ("api", "dispatcher", "worker", "raylet", "gcs")


def submit(service, number):
    """Every tenth job goes through the real engine."""
    options = {"kind": "recommend", "seeds": (0,)} if number % 10 == 9 else {"seeds": (0, 1, 2), "steps": 20}
    headers = {"Idempotency-Key": f"chaos-{number}"}
    answer = service.http.post("/v1/jobs", json=spec(number, **options), headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def kill(service, what):
    if what == "api":
        service.kill()
        service.start()
    else:
        part(service, what).kill()


def test_random_kills_lose_nothing(full, report, database_url, tmp_path):
    if not full and not database_url.startswith("sqlite"):
        pytest.skip("make chaos")
    seed = random.randrange(10**6)
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    kills, jobs = (50, 100) if full else (3, 8)
    with ServiceProcess(tmp_path, database=database_url, cpus=2) as service:
        ids = [submit(service, number) for number in range(jobs // 2)]
        victims = [PARTS[i % len(PARTS)] for i in range(kills)] if full else ["dispatcher", "worker", "api"]
        chance.shuffle(victims)
        for number, what in enumerate(victims):
            time.sleep(chance.uniform(0.2, 3.0))
            kill(service, what)
            while len(ids) < jobs // 2 + (number + 1) * (jobs - jobs // 2) // kills:
                ids.append(submit(service, len(ids)))
        store = SqlStore(Database(database_url))
        end = 600 if full else 180
        wait_until(lambda: all(store.get(job_id).status in TERMINAL for job_id in ids), end, "the end of all jobs")
        found = [fault for job_id in ids for fault in violations(store, job_id)]
        count = sum(store.counts().values())
        store.close()
    kind = database_url.partition(":")[0]
    report.row("No accepted job is lost, one right result", f"{kills} kills, {jobs} jobs, {kind}: 0", len(found))
    assert found == []
    assert count == len(set(ids)) == jobs


@pytest.mark.parametrize("what", ["raylet", "gcs"])
def test_what_dies_while_nothing_runs_is_noticed(full, report, tmp_path, what):
    """Nothing is submitted until another dispatcher has started: no task is there to tell of the death."""
    if not full and what != "raylet":
        pytest.skip("make chaos")
    with ServiceProcess(tmp_path, cpus=1, node_wait_seconds=1) as service:
        assert service.wait(service.submit(0))["status"] == "succeeded"
        victim, before = part(service, what), service.dispatcher().pid
        victim.kill()
        start = time.monotonic()

        def others():
            try:
                return service.dispatcher().pid != before
            except (StopIteration, psutil.Error):
                return False

        wait_until(others, 2 * BOUNDS[what], "another dispatcher")
        report.row(f"Death of an idle {what} noticed", f"≤ {BOUNDS[what]} s", f"{time.monotonic() - start:.1f} s")
        assert service.wait(service.submit(1))["status"] == "succeeded"


BOUNDS = {"worker": 5, "dispatcher": 45, "raylet": 60, "gcs": 120}


@pytest.mark.parametrize("what", list(BOUNDS))
def test_recovery_is_bounded(full, report, tmp_path, what):
    """Until cells are computed again; with the default lease. In a short run on one part, and with slack for noise."""
    if not full and what != "worker":
        pytest.skip("make chaos")
    with ServiceProcess(tmp_path, cpus=1, lease_seconds=15) as service:
        options = {"seeds": range(60), "steps": 25}
        job_id = service.submit(1, **options)
        asked = request(1, **options)
        wait_until(lambda: len(service.computed_cells(asked)) >= 2, 120, "the first cells")
        attempt = service.job(job_id)["attempt"]
        victim = part(service, what)
        victim.kill()
        start, before = time.monotonic(), len(service.computed_cells(asked))

        def recovered():
            again = what == "worker" or service.job(job_id)["attempt"] > attempt
            return again and len(service.computed_cells(asked)) > before

        wait_until(recovered, 3 * BOUNDS[what], f"recovery from kill -9 of the {what}")
        seconds = time.monotonic() - start
        report.row(f"Bounded recovery: {what}", f"≤ {BOUNDS[what]} s", f"{seconds:.1f} s")
        assert seconds <= BOUNDS[what] * (1 if full else 3)
        service.http.post(f"/v1/jobs/{job_id}:cancel")

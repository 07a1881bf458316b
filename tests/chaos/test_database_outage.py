"""PostgreSQL restarts under load: 503 with Retry-After and nothing worse, no job lost."""

import random
import threading
import time

import httpx
import pytest

from featurespeed_service.store.database import Database
from featurespeed_service.store.sql import SqlStore
from tests.chaos.checking import violations
from tests.service.postgres import Unavailable, running
from tests.service.service_process import TERMINAL, ServiceProcess, wait_until
from tests.service.specs import spec

LONGEST_SECONDS = 30


class Load:
    """Submits and reads until it is stopped, and notes every answer."""

    def __init__(self, service):
        self._service = service
        self.ids, self.answers, self.faults = [], [], []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self._thread.join()

    def _run(self):
        number = 0
        with httpx.Client(base_url=self._service.http.base_url, timeout=LONGEST_SECONDS) as http:
            while not self.stop.wait(0.2):
                headers = {"Idempotency-Key": f"load-{number}"}
                body = spec(number, seeds=(0, 1), steps=10)
                if answer := self._ask(http, "POST", "/v1/jobs", json=body, headers=headers):
                    self.ids.append(answer.json()["id"])
                    number += 1
                if self.ids:
                    self._ask(http, "GET", f"/v1/jobs/{random.choice(self.ids)}")
                self._ask(http, "GET", "/v1/jobs?limit=5")

    def _ask(self, http, *what, **options):
        try:
            answer = http.request(*what, **options)
        except httpx.HTTPError as error:
            self.faults.append(f"{what}: {error!r}")
            return None
        self.answers.append(answer.status_code)
        if answer.is_success:
            return answer
        if answer.status_code != 503 or "retry-after" not in answer.headers:
            self.faults.append(f"{what}: {answer.status_code} {answer.text}")
        return None


def test_restarts_of_postgresql_cost_503_and_nothing_else(full, report, tmp_path):
    chance = random.Random(seed := random.randrange(10**6))
    print(f"\nseed {seed}")
    try:
        with running() as server:
            outage(full, report, server, chance, tmp_path)
    except Unavailable as error:
        pytest.skip(f"no PostgreSQL here: {error}")


def outage(full, report, server, chance, tmp_path):
    url = server.new_database()
    with ServiceProcess(tmp_path, database=url, cpus=2) as service:
        with Load(service) as load:
            wait_until(lambda: len(load.ids) >= 3, 60, "the first jobs")
            end, restarts = time.monotonic() + 180, 0
            while time.monotonic() < end if full else restarts < 2:
                time.sleep(chance.uniform(5, 20) if full else 1.5)
                server.stop()
                time.sleep(chance.uniform(0, 3) if full else 1)
                server.start()
                restarts += 1
        store = SqlStore(Database(url))
        wait_until(lambda: all(store.get(job_id).status in TERMINAL for job_id in load.ids), 600, "the end of all jobs")
        lost = [fault for job_id in load.ids for fault in violations(store, job_id)]
        store.close()
    seen = {status: load.answers.count(status) for status in sorted(set(load.answers))}
    report.row(
        f"Database outage, {restarts} restarts", "only 503 with Retry-After, 0 lost", f"{seen}, {len(lost)} lost"
    )
    assert load.faults == []
    assert lost == []

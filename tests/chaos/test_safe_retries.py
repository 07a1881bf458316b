"""Submissions with a key while the server is killed: no duplicate, and what was accepted is there."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from featurespeed_service.store.database import Database
from featurespeed_service.store.sql import SqlStore
from tests.service.service_process import ServiceProcess
from tests.service.specs import spec


def insist(service, number):
    """Ids that a key got, sent until it was accepted twice."""
    ids = []
    while len(ids) < 2:
        try:
            headers = {"Idempotency-Key": f"key-{number}"}
            answer = service.http.post("/v1/jobs", json=spec(number, seeds=(0,)), headers=headers)
        except (httpx.HTTPError, RuntimeError):  # killed; or the client closed with it
            time.sleep(0.05)
            continue
        assert answer.status_code == 202, answer.text
        ids.append(answer.json()["id"])
    return ids


def test_keyed_submissions_over_kills_make_one_job_each(full, report, tmp_path, database_url):
    keys, kills = (1500, 20) if full else (75, 2)
    with ServiceProcess(tmp_path, dispatcher=False, database=database_url) as service:
        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(insist, service, number) for number in range(keys)]
            for kill in range(kills):
                while sum(future.done() for future in found) < (kill + 1) * keys // (kills + 1):
                    time.sleep(random.uniform(0.001, 0.02))
                service.kill()
                service.start()
            ids = [future.result() for future in found]
        store = SqlStore(Database(database_url))
        count = sum(store.counts().values())
        kept = {store.get(job_id).id for pair in ids for job_id in pair}
        store.close()
    kind = database_url.partition(":")[0]
    bound = f"≥ {2 * keys} POSTs, {kills} kills, {kind}: 0 duplicates, 0 lost"
    report.row("Safe retries", bound, f"{count - keys} duplicates, {keys - len(kept)} lost")
    assert all(first == second for first, second in ids)
    assert len(kept) == count == keys

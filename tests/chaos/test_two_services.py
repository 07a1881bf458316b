"""Two services share a data directory: both take part, no cell is computed twice, and either goes on alone."""

import json
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import func, select

from featurespeed_service.store.database import Database
from featurespeed_service.store.schema import dispatchers
from tests.service.service_process import ServiceProcess, wait_until
from tests.service.specs import request
from tests.service.sse import read_events

SEEDS, JOBS = (0, 1, 2), 8
STEPS = 10


def dispatchers_of(url):
    with closing(Database(url)) as database, database.reading() as connection:
        return connection.execute(select(func.count()).select_from(dispatchers)).scalar_one()


def attempts(service):
    """Ids of the jobs that this service's dispatcher has started, as often as it did."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return Counter(line["job_id"] for line in lines if line["event"] == "attempt started")


def submit_to_both(services, first_seed):
    """Ids by data.seed; every other one is submitted to the other service."""
    seeds = range(first_seed, first_seed + JOBS)
    return {seed: services[seed % 2].submit(seed, seeds=SEEDS, steps=STEPS) for seed in seeds}


def assert_succeeded_once(service, jobs):
    for job_id in jobs.values():
        assert service.wait(job_id, 120)["status"] == "succeeded"
        statuses = [json.loads(e.data)["status"] for e in read_events(service.http, job_id) if e.event == "status"]
        assert statuses.count("succeeded") == 1


@pytest.fixture
def pair(tmp_path, database_url, full):
    """Two services, started at the same moment on a directory that has nothing in it, and the database's URL."""
    data, settings = tmp_path / "data", {}
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{data / 'featurespeed.sqlite3'}"  # the default
    elif full:
        settings = {"database": database_url}
    else:
        pytest.skip("PostgreSQL with --full")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    services = [ServiceProcess(tmp_path / name, cpus=1, data_dir=data, **settings) for name in ("one", "other")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ServiceProcess.start, services))
    wait_until(lambda: dispatchers_of(database_url) == 2, 120, "both dispatchers live")
    yield services
    for service in services:
        service.__exit__()


def test_two_services_share_a_directory(pair, full, report):
    one, other = pair
    jobs = submit_to_both(pair, 0)
    assert_succeeded_once(one, jobs)
    assert [other.result(job_id) for job_id in jobs.values()] == [one.result(job_id) for job_id in jobs.values()]
    started = attempts(one) + attempts(other)
    assert started == Counter(jobs.values())
    for seed in jobs:
        asked = request(seed, seeds=SEEDS, steps=STEPS)
        computed = one.computed_seeds(asked) + other.computed_seeds(asked)
        assert sorted(computed) == list(SEEDS)
    shares = f"{len(attempts(one))} and {len(attempts(other))}"
    assert attempts(one)
    assert attempts(other)

    more = submit_to_both(pair, 100)
    wait_until(lambda: attempts(one).keys() & set(more.values()), 60, "the first works on one of them")
    if full:
        one.process.send_signal(signal.SIGKILL)
        one.end()
    else:
        assert one.interrupt()[0] == 0
    assert_succeeded_once(other, more)
    assert_succeeded_once(other, {200: other.submit(200, seeds=SEEDS)})
    report.row("two services on one directory", "each job once, either goes on alone", f"{shares} of {JOBS} jobs each")

"""One whole service: API, dispatcher, Ray, workers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from featurespeed.contract import Job, Progress, Report, parse_request
from featurespeed_workers import stages
from tests.service import stand_in
from tests.service.service_process import wait_until
from tests.service.specs import request, spec
from tests.service.sse import read_events


def test_the_engine_gives_the_numbers_that_it_gives_in_process(service):
    job_id = service.submit(kind="recommend", seeds=(3, 1, 2))
    job = service.wait(job_id)
    assert (job["status"], job["attempt"], job["progress"]["fraction"]) == ("succeeded", 1, 1.0), job["error"]
    asked = parse_request(spec(kind="recommend", seeds=(3, 1, 2)))
    done = {key: stages.run_cell(asked, key, {}) for key in stages.next_cells(asked, ())}
    here = stages.assemble(asked, done, wall_seconds=1)
    there = Report.model_validate_json(json.dumps(service.result(job_id)))
    assert there.model_dump(exclude={"provenance"}) == here.model_dump(exclude={"provenance"})
    assert there.provenance.spec_sha256 == here.provenance.spec_sha256


def test_events_tell_how_it_goes(service):
    job_id = service.submit(1, seeds=(0, 1), steps=20)
    events = read_events(service.http, job_id)
    statuses = [Job.model_validate_json(e.data).status for e in events if e.event == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    told = [Progress.model_validate_json(e.data) for e in events if e.event == "progress"]
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert any(0 < fraction < 1 for fraction in fractions)
    assert told[-1].cells_done == 2
    measured = sorted(e.data for e in events if e.event == "measurement")
    assert [f'"seed":{seed}' in text for seed, text in enumerate(measured)] == [True, True]


def test_a_short_job_does_not_wait_for_a_long_one(service):
    long = service.submit(2, seeds=range(12), steps=40)
    short = service.submit(3, seeds=(0,))
    assert service.wait(short)["status"] == "succeeded"
    assert service.job(long)["status"] == "running"
    service.http.post(f"/v1/jobs/{long}:cancel")
    assert service.wait(long)["status"] == "cancelled"


def test_a_cell_that_cannot_be_measured_fails_the_job_and_stops_its_siblings(service):
    job = service.wait(service.submit(stand_in.UNMEASURABLE, seeds=range(6), steps=100))
    assert job["status"] == "failed"
    assert job["error"] == {"type": "zero-gradient", "detail": "the gradient of block hidden_2 is zero"}
    time.sleep(1.0)
    assert 0 not in service.computed_seeds(request(stand_in.UNMEASURABLE, seeds=range(6), steps=100))


def test_a_dataset_that_does_not_fit_after_all_fails_the_job(service):
    job = service.wait(service.submit(stand_in.UNFIT))
    assert job["error"]["type"] == "invalid-spec"
    assert "dataset.inputs" in job["error"]["detail"]


def test_an_unexpected_error_stays_in_the_log(service):
    job = service.wait(service.submit(stand_in.BROKEN))
    assert (job["status"], job["error"]["type"], job["attempt"]) == ("failed", "internal-error", 1)
    assert "secret" not in str(job)
    reference = job["error"]["detail"].split()[-1]
    log = service.log.read_text()
    assert reference in log
    assert "a secret of the implementation" in log


def test_a_crashed_worker_is_replaced_and_finished_cells_stay(service):
    job_id = service.submit(stand_in.CRASH_ONCE, seeds=(0, 1), steps=2)
    job = service.wait(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert job["attempt"] == 1  # the cell alone is begun again
    assert sorted(service.computed_seeds(job_request(job))) == [0, 1]
    assert service.result(job_id)["measurements"][0]["loss_over_seeds"]["values"] == [
        stand_in.value_of(job_request(job), seed) for seed in (0, 1)
    ]


def job_request(job):
    return parse_request(job["request"])


def test_a_cell_that_always_crashes_fails_its_job(service):
    job = service.wait(service.submit(stand_in.CRASH_ALWAYS, seeds=(0,)))
    assert (job["status"], job["attempt"]) == ("failed", 1)
    assert job["error"] == {"type": "worker-crashed", "detail": "the worker of seed 0 died 3 times"}


def test_a_cancelled_cell_that_does_not_listen_is_ended(service):
    job_id = service.submit(stand_in.DEAF, seeds=(0, 1))
    wait_until(lambda: service.job(job_id)["status"] == "running", 10, "running")
    time.sleep(0.3)
    assert service.http.post(f"/v1/jobs/{job_id}:cancel").status_code == 202
    assert service.wait(job_id, 5)["status"] == "cancelled"
    # both slots are free again long before the minute that the cells would have taken
    assert service.wait(service.submit(20, seeds=(0, 1)), 20)["status"] == "succeeded"


def test_many_jobs_at_once_are_each_done_once(service):
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda seed: service.submit(seed, seeds=(0, 1)), range(100, 120)))
    jobs = [service.wait(job_id) for job_id in ids]
    assert {job["status"] for job in jobs} == {"succeeded"}
    for job_id, job in zip(ids, jobs, strict=True):
        asked = job_request(job)
        assert sorted(service.computed_seeds(asked)) == [0, 1]
        values = service.result(job_id)["measurements"][0]["loss_over_seeds"]["values"]
        assert values == [stand_in.value_of(asked, seed) for seed in (0, 1)]

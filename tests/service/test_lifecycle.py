"""Processes that die, are ended, and come back."""

import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import psutil
import pytest
from safetensors.numpy import save

from featurespeed.contract import Report
from featurespeed_workers import local, stages
from tests.service import stand_in
from tests.service.service_process import ServiceProcess, wait_until
from tests.service.specs import request, spec
from tests.service.sse import read_events

SLOW = {"seeds": (0, 1, 2), "steps": 60}
"""More cells than slots, each of more than a second: something is finished while something else still runs."""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory):
    """A service that may be killed; each test leaves it running."""
    with ServiceProcess(tmp_path_factory.mktemp("mortal"), cpus=2) as service:
        service.wait_ready()
        yield service


def started(service, seed):
    """A job of which some cells are finished and some are not."""
    job_id = service.submit(seed, **SLOW)

    def some_done():
        job = service.job(job_id)
        assert job["status"] in ("queued", "running"), job
        return 1 <= job["progress"]["cells_done"] < 3

    wait_until(some_done, 60, "the first cells")
    return job_id, service.computed_seeds(request(seed, **SLOW))


def assert_finished_once(service, job_id, seed, done_before):
    job = service.wait(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    asked = request(seed, **SLOW)
    computed = service.computed_seeds(asked)
    assert computed[: len(done_before)] == done_before
    assert sorted(set(computed)) == [0, 1, 2]
    assert all(computed.count(seed) == 1 for seed in done_before)
    values = service.result(job_id)["measurements"][0]["loss_over_seeds"]["values"]
    assert values == [stand_in.value_of(asked, seed) for seed in (0, 1, 2)]
    ends = [e for e in read_events(service.http, job_id) if e.event == "status" and '"status":"succeeded"' in e.data]
    assert len(ends) == 1


def token_of(dispatcher):
    """The token of its Ray."""
    raylet = next(process for process in dispatcher.children(recursive=True) if "raylet" in process.name())
    return raylet.environ()["RAY_AUTH_TOKEN"]


def assert_gone(family, seconds=15):
    _, alive = psutil.wait_procs(family, timeout=seconds)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_job_survives_kill_9_of_the_dispatcher(mortal):
    job_id, done = started(mortal, 1)
    dispatcher = mortal.dispatcher()
    family = dispatcher.children(recursive=True)
    token = token_of(dispatcher)
    dispatcher.kill()
    assert_finished_once(mortal, job_id, 1, done)
    assert mortal.dispatcher().pid != dispatcher.pid
    assert token_of(mortal.dispatcher()) != token  # each Ray has its own
    assert_gone(family)


def test_probes_that_are_finished_survive_kill_9_of_the_dispatcher(mortal):
    """The real engine, whose probes wait for the closed form of their seed, the second round's for the first's too.

    Killed in the middle of the probes: those that are stored decide what is tried next.
    """
    mortal.wait_ready()
    refine = {"steps": 400, "factors": [0.25, 0.5], "seeds": 2}
    options = {"kind": "recommend", "seeds": (0, 1), "scaling": {"refine": refine}}
    asked = request(**options)
    job_id = mortal.submit(**options)
    assert mortal.job(job_id)["progress"]["cells_total"] == asked.cells_total == 10
    wait_until(lambda: mortal.job(job_id)["progress"]["cells_done"] >= 3, 60, "the first probe")
    mortal.dispatcher().kill()
    kept = mortal.stored_cells(job_id)
    assert {"seed 0", "seed 1"} < kept < set(stages.plan(asked))
    job = mortal.wait(job_id)
    assert (job["status"], job["attempt"], job["progress"]["cells_done"]) == ("succeeded", 2, 10), job["error"]
    computed = mortal.computed_cells(asked)
    assert set(computed) == set(stages.plan(asked))
    assert all(computed.count(key) == 1 for key in kept)
    there = Report.model_validate_json(json.dumps(mortal.result(job_id)))
    here = local.answer(asked, threads=1)
    assert there.model_dump(exclude={"provenance"}) == here.model_dump(exclude={"provenance"})
    assert here.recommendation.refinement.total_steps == 3200


def test_a_job_survives_kill_9_of_the_raylet(mortal):
    """Ray's node dies, not our process: another dispatcher with another Ray goes on, and the service is ready again."""
    mortal.wait_ready()
    long = {"seeds": tuple(range(10)), "steps": 60}
    job_id = mortal.submit(7, **long)
    wait_until(lambda: mortal.job(job_id)["progress"]["cells_done"] >= 1, 60, "the first cell")
    done = mortal.computed_seeds(request(7, **long))
    dispatcher = mortal.dispatcher()
    family = dispatcher.children(recursive=True)
    next(process for process in family if "raylet" in process.name()).kill()
    job = mortal.wait(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    computed = mortal.computed_seeds(request(7, **long))
    assert all(computed.count(seed) == 1 for seed in done)
    values = mortal.result(job_id)["measurements"][0]["loss_over_seeds"]["values"]
    assert values == [stand_in.value_of(request(7, **long), seed) for seed in range(10)]
    assert mortal.dispatcher().pid != dispatcher.pid
    assert_gone(family)
    mortal.wait_ready()


def test_a_job_survives_kill_9_of_the_api(mortal):
    mortal.wait_ready()
    job_id, done = started(mortal, 2)
    family = mortal.family()
    mortal.kill()
    assert_gone(family)
    mortal.start()
    assert_finished_once(mortal, job_id, 2, done)


def test_a_job_survives_kill_9_of_everything(mortal):
    mortal.wait_ready()
    job_id, done = started(mortal, 3)
    family = mortal.family()
    for process in reversed(family):
        if process.is_running():
            process.kill()
    mortal.end()
    assert_gone(family)
    mortal.start()
    assert_finished_once(mortal, job_id, 3, done)


def test_ctrl_c_ends_everything_within_ten_seconds_and_costs_the_job_nothing(mortal):
    mortal.wait_ready()
    job_id, done = started(mortal, 4)
    family = mortal.family()
    reader = threading.Thread(target=read_events, args=(mortal.http, job_id))  # an open stream does not hold it
    reader.start()
    killer = threading.Timer(10, mortal.process.kill)  # past the limit the status will not be 0
    killer.start()
    status, printed = mortal.interrupt()
    killer.cancel()
    reader.join()
    assert (status, printed) == (0, "")
    assert_gone(family, 0.5)
    assert "Traceback" not in mortal.log.read_text().split("job_")[-1]
    mortal.start()
    assert_finished_once(mortal, job_id, 4, done)


def serve(arguments, environment):
    code = f"import sys; from featurespeed_service.serve import serve; sys.exit(serve({arguments}))"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_sigterm_during_the_start_leaves_nothing(tmp_path):
    with ServiceProcess(tmp_path) as service:
        family = wait_until(lambda: (found := service.family())[3:] and found, 30, "the first of Ray's processes")
        os.kill(service.process.pid, signal.SIGTERM)
        assert service.process.wait(15) == 0
        assert_gone(family)
        service.end()


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "cannot listen on 127.0.0.1"),
        ({"FEATURESPEED_MAX_ATTEMPTS": "0"}, "FEATURESPEED_MAX_ATTEMPTS"),
        ({"FEATURESPEED_DATABASE": "sqlite:////nowhere/at/all.sqlite3"}, "cannot open the database"),
        ({"FEATURESPEED_DATABASE": "nonsense"}, "cannot open the database"),
        ({"FEATURESPEED_DATA_DIR": "/dev/null/x"}, "cannot open the database"),
    ],
    ids=["busy port", "bad setting", "no database", "no URL", "no directory"],
)
def test_what_cannot_start_says_why_in_one_line(tmp_path, environment, complaint):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        found = serve(f"'127.0.0.1', {port}", {"FEATURESPEED_DATA_DIR": str(tmp_path), **environment})
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("featurespeed: ")
    assert complaint in found.stderr


def test_the_api_imports_neither_ray_nor_torch(tmp_path):
    code = f"""
import sys
from pathlib import Path
from featurespeed_service import serve
from featurespeed_service.api.app import create_app
from featurespeed_service.settings import Settings
from featurespeed_service.store.sql import open_store
settings = Settings(data_dir=Path({str(tmp_path)!r}))
create_app(settings, open_store(settings)).openapi()
print(sorted({{"ray", "torch"}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr


def test_a_fault_in_one_dataset_fails_its_job_alone(tmp_path):
    """A piece is missing in the database; the other job's attempt is its first."""
    content = save({"inputs": np.ones((4, 8), np.float32), "targets": np.ones((4, 2), np.float32)})
    sha256 = hashlib.sha256(content).hexdigest()
    with ServiceProcess(tmp_path, cpus=1) as service:
        other = service.submit(5, **SLOW)
        assert service.http.put(f"/v1/datasets/{sha256}", content=content).status_code == 201
        with closing(sqlite3.connect(service.database)) as connection, connection:
            connection.execute("DELETE FROM dataset_chunks")
        job = service.wait(service.submit(6, data={"kind": "dataset", "sha256": sha256, "batch_size": 4}))
        assert (job["status"], job["error"]["type"]) == ("failed", "internal-error")
        assert "reference" in job["error"]["detail"]
        ended = service.wait(other)
        assert (ended["status"], ended["attempt"]) == ("succeeded", 1)


def test_a_stop_does_not_wait_for_a_locked_database(tmp_path):
    with ServiceProcess(tmp_path, cpus=1) as service, ThreadPoolExecutor(1) as pool:
        service.wait_ready()
        with closing(sqlite3.connect(service.database)) as locked:
            locked.execute("BEGIN IMMEDIATE")
            waiting = pool.submit(service.http.post, "/v1/jobs", json=spec(1))
            time.sleep(1)
            start = time.monotonic()
            service.process.terminate()
            assert service.process.wait(20) == 0
            assert time.monotonic() - start <= 10
        assert waiting.result(20).status_code == 503


def test_a_dispatcher_that_waits_for_its_ray_can_be_stopped(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "featurespeed", "dispatcher", "--ray-address", address]
    command += ["--data-dir", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with process:
        assert "waiting for the Ray at" in process.stderr.readline()
        process.terminate()
        assert process.wait(5) == 0

"""The processes of a cluster: the API alone, a Ray node with a token, a dispatcher beside it, one PostgreSQL."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.command import run
from tests.deploy.manifests import ROOT
from tests.service.service_process import HERE, TERMINAL, wait_until
from tests.service.specs import spec
from tests.service.stand_in import MEET

BIN = Path(sys.executable).parent


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def short_directory():
    """For Ray: the path of a Unix socket has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="fs-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield directory


@pytest.fixture
def processes(tmp_path):
    """Starts commands; all of them are ended in the end."""
    started = []

    def start(*command, **environment):
        with (tmp_path / f"log{len(started)}").open("w") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}", **environment},
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()  # not at once by force: the script for Slurm has children to end
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait(20)
        process.stdout.close()


def test_api_ray_and_dispatcher_are_processes_of_their_own(short_directory, processes, postgres, tmp_path):
    port, token, url = free_port(), secrets.token_hex(32), postgres.new_database()
    ours = {
        "FEATURESPEED_DATABASE": url,
        "FEATURESPEED_ENGINE": "stand_in",
        "FEATURESPEED_DATA_DIR": str(tmp_path / "data"),
        "STAND_IN_LOG": str(tmp_path / "computed"),
    }
    of_ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    featurespeed = (sys.executable, "-m", "featurespeed")
    ray = processes(
        BIN / "ray", "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block",
        "--object-store-memory=80000000", f"--temp-dir={short_directory}", **of_ray, **ours,
    )  # fmt: skip
    dispatcher = processes(*featurespeed, "dispatcher", "--ray-address", f"127.0.0.1:{port}", **of_ray, **ours)
    api = processes(*featurespeed, "serve", "--no-dispatcher", "--port", "0", **ours)
    with httpx.Client(base_url=api.stdout.readline().split()[-1], timeout=20) as http:
        answer = http.post("/v1/jobs", json=spec(seeds=(0, 1)))
        job = f"/v1/jobs/{answer.raise_for_status().json()['id']}"
        ended = wait_until(lambda: (found := http.get(job).json())["status"] in TERMINAL and found, 90, "the job")
        assert ended["status"] == "succeeded", ended
        assert run("database", "current", "--database", url).stdout == run("database", "upgrade", **ours).stdout
    for process in (api, dispatcher):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert ray.poll() is None  # a dispatcher's end is not the cluster's
    ray.send_signal(signal.SIGTERM)
    ray.wait(30)


SCONTROL = """#!/bin/sh
printf 'first\\nlocalhost\\n'
"""
SRUN = """#!/bin/sh
while case $1 in --*) true ;; *) false ;; esac; do shift; done
exec "$@"
"""


def test_a_slurm_job_computes_on_all_of_its_nodes_and_ends_them(processes, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, script in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o700)
    (tmp_path / "places").touch()
    port = free_port()
    job = processes(
        "bash", ROOT / "deploy/slurm/featurespeed.sbatch",
        PATH=f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}",
        SLURM_JOB_ID="1", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="[first,localhost]",
        RAY_PORT=str(free_port()), RAY_OPTIONS="--num-cpus=1 --object-store-memory=80000000", PORT=str(port),
        FEATURESPEED_DATA_DIR=str(tmp_path / "data"), FEATURESPEED_ENGINE="stand_in",
        STAND_IN_LOG=str(tmp_path / "computed"), STAND_IN_PLACES=str(tmp_path / "places"),
    )  # fmt: skip
    wait_until(lambda: "is listening" in job.stdout.readline(), 30, "the service")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
        answer = http.post("/v1/jobs", json=spec(MEET, seeds=(0, 1)))  # two cells that wait for each other
        address = f"/v1/jobs/{answer.raise_for_status().json()['id']}"
        ended = wait_until(lambda: (found := http.get(address).json())["status"] in TERMINAL and found, 90, "the job")
        assert ended["status"] == "succeeded", ended
    assert len({line.split()[1] for line in (tmp_path / "places").read_text().splitlines()}) == 2
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    assert job.wait(50) == 0
    assert not [process for process in psutil.wait_procs(family, 5)[1] if process.status() != psutil.STATUS_ZOMBIE]


def test_revision_before_and_after(tmp_path):
    before = run("database", "current", "--data-dir", tmp_path / "data")
    assert before.stdout.startswith("none (this program needs ")
    assert not (tmp_path / "data").exists()
    upgraded = run("database", "upgrade", "--data-dir", tmp_path / "data")
    assert upgraded.stdout.endswith(" (up to date)\n")
    assert run("database", "current", "--data-dir", tmp_path / "data").stdout == upgraded.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["database", "current", "--database", "nonsense"], "cannot open the database"),
        (["database", "upgrade", "--database", "sqlite:////nowhere/at/all"], "cannot open the database"),
        (["dispatcher", "--ray-address", "nonsense"], "HOST:PORT or auto (got 'nonsense')"),
        (["dispatcher", "--database", "nonsense"], "cannot open the database"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(arguments, message, tmp_path):
    done = run(*arguments, FEATURESPEED_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    line = [line for line in done.stderr.splitlines() if line.startswith("featurespeed: ")]
    assert len(line) == 1
    assert message in line[0]
    assert "Traceback" not in done.stderr


def test_the_password_of_a_database_may_be_in_a_file(postgres, tmp_path):
    (tmp_path / "password").write_text("s€cret/@:\n")
    url = postgres.new_database()
    done = run("database", "upgrade", "--database", url, FEATURESPEED_DATABASE_PASSWORD_FILE=str(tmp_path / "password"))
    assert done.returncode == 0, done.stderr
    missing = run("database", "current", FEATURESPEED_DATABASE=url, FEATURESPEED_DATABASE_PASSWORD_FILE="/nowhere")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "/nowhere" in missing.stderr

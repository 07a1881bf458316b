"""The processes of a cluster: the API alone, a Ray node with a token, a dispatcher beside it, one PostgreSQL."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.cli.command import run
from tests.service.service_process import HERE, TERMINAL, wait_until
from tests.service.specs import spec

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
        if process.poll() is None:
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

"""``serve`` as a process of its own, as a user starts it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import psutil

from tests.service.specs import spec

HERE = Path(__file__).parent
COMMAND = "import sys; from featurespeed_service.serve import serve; sys.exit(serve('127.0.0.1', 0, dispatcher=%s))"
TERMINAL = ("succeeded", "failed", "cancelled")


def wait_until(condition, seconds, what):
    """The first true value of ``condition()``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value


class ServiceProcess:
    """A service over a directory; may be killed and started again. Without a dispatcher it is the API alone."""

    def __init__(self, directory: Path, *, dispatcher=True, **settings):
        self._command = [sys.executable, "-c", COMMAND % dispatcher]
        self.log = directory / "log"
        self.computed = directory / "computed"
        self.computed.touch()
        self.database = directory / "data" / "featurespeed.sqlite3"
        chosen = {"engine": "stand_in", "data_dir": directory / "data", "lease_seconds": 3, "cancel_grace_seconds": 1}
        self.environment = {
            **os.environ,
            **{f"FEATURESPEED_{name.upper()}": str(value) for name, value in (chosen | settings).items()},
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "STAND_IN_LOG": str(self.computed),
        }
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.interrupt()
        else:
            self.end()

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                text=True,
                start_new_session=True,
            )
        line = self.process.stdout.readline()
        assert line.startswith("featurespeed is listening on http://127.0.0.1:"), self.log.read_text()
        self.http = httpx.Client(base_url=line.split()[-1], timeout=20)

    def wait_ready(self):
        """Wait until jobs are accepted and somebody works on them."""
        wait_until(lambda: self.http.get("/readyz").json().get("dispatcher") == "alive", 60, "ready")

    def family(self):
        """Everything that the service has started, itself first."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def dispatcher(self):
        own = psutil.Process(self.process.pid)
        return next(child for child in own.children() if "featurespeed_service.dispatch" in child.cmdline())

    def kill(self):
        """kill -9 of the API process."""
        self.process.kill()
        self.end()

    def interrupt(self):
        """Ctrl-C in the terminal of the service; gives its exit status, and what it printed since its first line."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20), self.end()

    def end(self):
        """Let go of a process that ends; again does no harm."""
        self.process.wait(20)
        if self.process.stdout.closed:
            return ""
        rest = self.process.stdout.read()
        self.process.stdout.close()
        self.http.close()
        return rest

    def submit(self, seed=0, **options):
        answer = self.http.post("/v1/jobs", json=spec(seed, **options))
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id):
        return self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()

    def wait(self, job_id, seconds=60):
        """The job, when it has ended."""
        return wait_until(lambda: (job := self.job(job_id))["status"] in TERMINAL and job, seconds, f"end of {job_id}")

    def result(self, job_id):
        return self.http.get(f"/v1/jobs/{job_id}/result").raise_for_status().json()

    def computed_cells(self, request):
        """Keys of the request's cells that the stand-in has finished, in order, as often as it did."""
        lines = [line.split(maxsplit=1) for line in self.computed.read_text().splitlines()]
        return [key for sha256, key in lines if sha256 == request.sha256]

    def stored_cells(self, job_id):
        """Keys of the cells that the store keeps of a job."""
        with closing(sqlite3.connect(self.database)) as connection:
            return {key for (key,) in connection.execute("SELECT key FROM cells WHERE job_id = ?", (job_id,))}

    def computed_seeds(self, request):
        """The same of a request whose cells are seeds."""
        return [int(key.removeprefix("seed ")) for key in self.computed_cells(request)]

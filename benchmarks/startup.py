"""What a user waits for besides the measurement: imports, a whole process, the service around a tiny job."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import httpx

from featurespeed import Client
from featurespeed.contract import parse_request

TINY: dict[str, Any] = {
    "kind": "measure",
    "architecture": {"family": "mlp", "input_dim": 8, "width": 16, "depth": 3, "output_dim": 4},
    "data": {"kind": "gaussian", "batch_size": 16},
    "loss": "cross_entropy",
    "measurement": {"seeds": [0]},
}


def _median_seconds(action: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def import_seconds(rounds: int = 9) -> float:
    """``from featurespeed import Client`` beyond a bare interpreter: median wall time of whole processes."""

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    full = _median_seconds(lambda: run("from featurespeed import Client"), rounds)
    return full - _median_seconds(lambda: run("pass"), rounds)


def process_seconds(rounds: int = 5) -> float:
    """``featurespeed measure`` of a tiny MLP in-process: median wall time of the whole process."""
    command = [sys.executable, "-m", "featurespeed", "measure", "-", "--json"]

    def run() -> None:
        subprocess.run(command, check=True, input=json.dumps(TINY), capture_output=True, text=True)

    return _median_seconds(run, rounds)


def service_seconds(rounds: int = 31) -> tuple[float, float]:
    """Median seconds from submit to result of a tiny spec with warm workers, and of its computation in-process."""
    from featurespeed_workers.local import answer

    request = parse_request(TINY)
    answer(request)
    inside = _median_seconds(lambda: answer(request), rounds)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "featurespeed", "serve", "--port", "0", "--data-dir", folder]
        environment = {**os.environ, "FEATURESPEED_DATA_DIR": folder}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as service:
            try:
                assert service.stdout is not None
                address = service.stdout.readline().split()[-1]
                _wait_until_ready(address)
                with Client(address) as client:
                    client.measure(TINY)
                    total = _median_seconds(lambda: client.measure(TINY), rounds)
            finally:
                service.send_signal(signal.SIGTERM)
    return total, inside


def _wait_until_ready(address: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while httpx.get(f"{address}/readyz").json().get("dispatcher") != "alive":
        if time.monotonic() > end:
            raise SystemExit(f"the service was not ready within {seconds:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    print(import_seconds(), process_seconds(), service_seconds())
